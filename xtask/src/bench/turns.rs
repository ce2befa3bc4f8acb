//! Sides that train in turns, and how their speeds compare.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::conversation::Conversation;
use super::statistics::{median, quartiles, rounded};

/// A program that trains on command.
pub(crate) struct Side {
    conversation: Option<Conversation>,
    /// Its first line.
    pub(crate) greeting: Value,
    /// Steps per second of each turn that counted.
    speeds: Vec<f64>,
    first_loss: Option<f64>,
    /// Head 0's loss on held-out text at the end.
    pub(crate) held_out: Option<f64>,
    /// Why it left, if it did.
    pub(crate) failed: Option<String>,
    /// Whether the others go on without it.
    optional: bool,
}

impl Side {
    /// Starts the program.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let (conversation, greeting) = Conversation::start(&mut command)?;
        Ok(Self {
            conversation: Some(conversation),
            greeting,
            speeds: Vec::new(),
            first_loss: None,
            held_out: None,
            failed: None,
            optional: false,
        })
    }

    /// The same, but if it ends early it is taken to have left.
    pub(crate) fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// Asks, unless the side has left. An answer that says `failed` makes it leave.
    pub(crate) fn ask(&mut self, line: &str) -> Result<Option<Value>> {
        let Some(conversation) = &mut self.conversation else { return Ok(None) };
        let why = match conversation.ask(line) {
            Ok(answer) => match answer["failed"].as_str() {
                None => return Ok(Some(answer)),
                Some(why) => why.to_owned(),
            },
            Err(error) if self.optional => format!("{error:#}"),
            Err(error) => return Err(error),
        };
        self.failed = Some(why);
        self.conversation = None;
        Ok(None)
    }

    /// A number of the greeting.
    pub(crate) fn figure(&self, name: &str) -> Result<f64> {
        let value = self.greeting[name].as_f64();
        value.with_context(|| format!("no {name} in the greeting {}", self.greeting))
    }

    /// Median steps per second.
    pub(crate) fn speed(&self) -> f64 {
        median(&self.speeds)
    }

    /// Trains one turn; whether it counts.
    fn turn(&mut self, steps: usize, counts: bool) -> Result<()> {
        let Some(answer) = self.ask(&format!("steps {steps}"))? else { return Ok(()) };
        if self.first_loss.is_none() {
            self.first_loss = answer["losses"][0].as_f64();
        }
        let seconds = answer["seconds"].as_f64();
        let seconds = seconds.with_context(|| format!("no time in the answer {answer}"))?;
        if counts {
            self.speeds.push(steps as f64 / seconds);
        }
        Ok(())
    }

    /// Asks for the held-out loss.
    pub(crate) fn evaluate(&mut self) -> Result<()> {
        if let Some(answer) = self.ask("evaluate")? {
            let loss = answer["losses"][0].as_f64();
            self.held_out = Some(loss.with_context(|| format!("no loss in the answer {answer}"))?);
        }
        Ok(())
    }

    /// Its figures, or why it has none.
    pub(crate) fn to_json(&self) -> Value {
        if let Some(why) = &self.failed {
            return json!({ "failed": why });
        }
        let all: Vec<f64> = self.speeds.iter().map(|&speed| rounded(speed, 4)).collect();
        json!({
            "steps_per_second": rounded(self.speed(), 4), "all": all,
            "first_loss": self.first_loss, "held_out_loss": self.held_out,
        })
    }
}

/// Steps of the warm-up before turns of so many: what is compiled or laid out at first is so by
/// then.
pub(crate) fn warm_up(turn: usize) -> usize {
    turn.max(2)
}

/// A warm-up, then `rounds` turns of `steps` steps for each side; who begins changes every round.
pub(crate) fn take_turns(sides: &mut [Side], steps: usize, rounds: usize) -> Result<()> {
    for side in sides.iter_mut() {
        side.turn(warm_up(steps), false)?;
    }
    for round in 0..rounds {
        for position in 0..sides.len() {
            let turn_of = (round + position) % sides.len();
            sides[turn_of].turn(steps, true)?;
        }
    }
    Ok(())
}

/// How many times as fast one side was as another, turn by turn.
#[derive(Clone, Debug)]
pub(crate) struct Ratio {
    all: Vec<f64>,
}

impl Ratio {
    /// The first side's speed over the second's in each round; none where one of them failed.
    pub(crate) fn of(side: &Side, over: &Side) -> Option<Self> {
        let all: Vec<f64> = side.speeds.iter().zip(&over.speeds).map(|(a, b)| a / b).collect();
        (side.failed.is_none() && over.failed.is_none() && !all.is_empty()).then_some(Self { all })
    }

    /// The median of the pairs.
    pub(crate) fn median(&self) -> f64 {
        median(&self.all)
    }

    /// `1.17 (1.15 to 1.19)`: median and quartiles of the pairs.
    pub(crate) fn line(&self) -> String {
        let [low, high] = quartiles(&self.all);
        format!("{:.3} ({low:.3} to {high:.3})", self.median())
    }

    /// Median, then quartiles, for results.
    pub(crate) fn figures(&self) -> (f64, Value) {
        (rounded(self.median(), 3), json!(quartiles(&self.all).map(|value| rounded(value, 3))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A side whose turns take so many seconds by its own clock, the first one ten times as many.
    fn side(seconds: u32) -> Result<Side> {
        let program = format!(
            "s={seconds}0; echo '{{\"parameters\": 7}}'; while read what n; do \
             echo \"{{\\\"seconds\\\": $s, \\\"losses\\\": [$s.5]}}\"; s={seconds}; done"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &program]);
        Side::start(command)
    }

    #[test]
    fn speeds_are_paired_by_round_and_the_warm_up_does_not_count() -> Result<()> {
        let mut sides = [side(2)?, side(4)?];
        take_turns(&mut sides, 4, 3)?;
        let ratio = Ratio::of(&sides[0], &sides[1]).context("no ratio")?;
        assert_eq!(ratio.all, [2.0, 2.0, 2.0]);
        assert!((sides[0].speed() - 2.0).abs() < 1e-9);
        assert!((sides[1].figure("parameters")? - 7.0).abs() < 1e-9);
        sides[0].evaluate()?;
        assert_eq!(sides[0].to_json()["held_out_loss"], json!(2.5));
        assert_eq!(sides[0].to_json()["first_loss"], json!(20.5));
        Ok(())
    }

    #[test]
    fn a_side_that_fails_leaves_and_the_others_go_on() -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '{}'; read a; echo '{\"failed\": \"no compiler\"}'"]);
        let mut sides = [side(2)?, Side::start(command)?];
        take_turns(&mut sides, 1, 3)?;
        assert_eq!(sides[0].speeds.len(), 3);
        assert_eq!(sides[1].to_json(), json!({"failed": "no compiler"}));
        assert!(Ratio::of(&sides[0], &sides[1]).is_none());
        Ok(())
    }

    #[test]
    fn only_an_optional_side_may_end_early() -> Result<()> {
        let dying = || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo '{}'; read a; exit 3"]);
            Side::start(command)
        };
        let mut sides = [side(2)?, dying()?.optional()];
        take_turns(&mut sides, 1, 3)?;
        assert!(sides[1].failed.as_ref().is_some_and(|why| why.contains("ended")));
        assert!(take_turns(&mut [side(2)?, dying()?], 1, 3).is_err());
        Ok(())
    }
}
