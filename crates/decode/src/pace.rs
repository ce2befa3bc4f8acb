//! How many drafts and alternatives a step takes: all that are asked for, or as many as pay.

use std::time::Duration;

/// Steps of a trial before the first decision and between two.
const TRIAL: usize = 20;
/// In a trial every so many steps verify no draft, to learn what plain decoding costs.
const PLAIN_EVERY: usize = 5;
/// How much faster another choice must be to be changed to.
const MARGIN: f64 = 1.03;
/// Steps after which the next text tries everything once more.
const RENEWED_AFTER: usize = 250;

/// The number of drafts for each step of a text, and of alternatives to them. Within a text both only
/// ever fall: heads that have passed over a position cannot draft again.
pub(crate) struct Pace {
    /// What was asked for.
    most: Choice,
    now: Choice,
    /// Steps since everything was tried.
    steps: usize,
    trial: Option<Trial>,
}

/// How many drafts, and alternatives to them, a step verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    drafts: usize,
    others: usize,
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Drafts and alternatives that it verified.
    pub(crate) verified: (usize, usize),
    /// Drafts that were right, up to the first that was not.
    pub(crate) agreed: usize,
    /// Which alternative was right in its place, and the head whose draft stood there.
    pub(crate) other: Option<(usize, usize)>,
    /// Time to draft and to verify.
    pub(crate) took: (Duration, Duration),
}

/// What was seen of the steps of a text.
struct Trial {
    /// Seconds to verify no draft.
    plain: Vec<f64>,
    /// Seconds to draft and to verify, without alternatives and with all of them.
    full: [Vec<f64>; 2],
    /// Steps whose first i drafts were right, at i − 1.
    agreed: Vec<usize>,
    /// Alternatives that were right: which, and the head whose draft stood there.
    others: Vec<(usize, usize)>,
}

impl Pace {
    /// Always `drafts` drafts and as many as `others` alternatives.
    pub(crate) fn steady(drafts: usize, others: usize) -> Self {
        let now = Choice { drafts, others };
        Self { most: now, now, steps: 0, trial: None }
    }

    /// Up to `drafts` drafts and `others` alternatives: as many as are measured to pay.
    pub(crate) fn adaptive(drafts: usize, others: usize) -> Self {
        Self { trial: Trial::of(drafts), ..Self::steady(drafts, others) }
    }

    /// The pace of the next text, where the same is asked for: what was learned is kept for a while.
    pub(crate) fn next_text(self, drafts: usize, others: usize) -> Self {
        let asked = Choice { drafts, others };
        if asked == self.most && self.steps < RENEWED_AFTER {
            return self;
        }
        Self::adaptive(drafts, others)
    }

    /// Heads to draft with in this step.
    pub(crate) fn drafting(&self) -> usize {
        self.now.drafts
    }

    /// How many of their drafts to verify.
    pub(crate) fn verifying(&self) -> usize {
        let plain = self.trial.is_some() && self.steps % PLAIN_EVERY == PLAIN_EVERY - 1;
        if plain { 0 } else { self.now.drafts }
    }

    /// Most alternatives to verify in this step. In a trial every other step takes none.
    pub(crate) fn others(&self) -> usize {
        let none = self.trial.is_some() && self.steps % PLAIN_EVERY % 2 == 1;
        if none { 0 } else { self.now.others }
    }

    /// Takes in what a step did.
    pub(crate) fn observe(&mut self, step: Step) {
        self.steps += 1;
        let Some(trial) = &mut self.trial else { return };
        trial.observe(step, self.now.drafts);
        if !self.steps.is_multiple_of(TRIAL) {
            return;
        }
        let best = trial.best(self.now);
        if best != self.now {
            self.now = best;
            self.trial = Trial::of(best.drafts);
        } else if self.steps >= 3 * TRIAL {
            self.trial = None;
        }
    }
}

impl Trial {
    /// None where there are no drafts to try.
    fn of(drafts: usize) -> Option<Self> {
        let full = [Vec::new(), Vec::new()];
        let agreed = vec![0; drafts];
        (drafts > 0).then(|| Self { plain: Vec::new(), full, agreed, others: Vec::new() })
    }

    fn observe(&mut self, step: Step, drafts: usize) {
        let (drafting, verifying) = step.took;
        let (verified, others) = step.verified;
        if verified == 0 {
            self.plain.push(verifying.as_secs_f64());
        } else if verified == drafts {
            self.full[usize::from(others > 0)].push((drafting + verifying).as_secs_f64());
            self.agreed[..step.agreed].iter_mut().for_each(|count| *count += 1);
            self.others.extend(step.other);
        }
    }

    /// The choice with the most tokens a second, of those that do with what `now` has; `now` where
    /// no other is much better.
    fn best(&self, now: Choice) -> Choice {
        // Heads that choose among one token have no others.
        let now = if self.full[1].is_empty() { Choice { others: 0, ..now } } else { now };
        let Some(stay) = self.rate(now, now).map(|rate| rate * MARGIN) else { return now };
        let halves = std::iter::successors(Some(now.others), |&n| (n > 0).then_some(n / 2));
        let others: Vec<usize> = halves.collect();
        (0..=now.drafts)
            .flat_map(|drafts| others.iter().map(move |&others| Choice { drafts, others }))
            .filter(|choice| (choice.drafts > 0 || choice.others == 0) && *choice != now)
            .filter_map(|choice| Some((choice, self.rate(choice, now)?)))
            .filter(|&(_, rate)| rate > stay)
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(now, |(choice, _)| choice)
    }

    /// Tokens a second by a choice. Steps that were not tried cost what lies between those that were.
    fn rate(&self, choice: Choice, now: Choice) -> Option<f64> {
        let Choice { drafts, others } = choice;
        let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
        let (plain, full) = (median(&self.plain)?, median(&self.full[0])?);
        let with_others = if others > 0 { median(&self.full[1])? } else { full };
        let seconds = plain
            + (full - plain) * share(drafts, now.drafts)
            + (with_others - full) * share(others, now.others);
        let [without, with] = [&self.full[0], &self.full[1]].map(Vec::len);
        let agreed: usize = self.agreed[..drafts].iter().sum();
        let right = self.others.iter().filter(|(which, head)| *which < others && *head <= drafts);
        let tokens = 1.0 + share(agreed, without + with) + share(right.count(), with);
        Some(tokens / seconds.max(1e-9))
    }
}

fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a text of `steps` steps, each row of which takes `row` µs; `agree(step)` drafts are right
    /// where so many are verified, and in every other step the `which`th alternative to the next, if
    /// there are as many.
    fn run(
        mut pace: Pace,
        steps: usize,
        row: u64,
        which: usize,
        agree: impl Fn(usize) -> usize,
    ) -> Pace {
        for step in 0..steps {
            let drafts = pace.verifying();
            let others = if drafts > 0 { pace.others() } else { 0 };
            let agreed = agree(step).min(drafts);
            let right = step % 4 < 2 && which < others && agreed < drafts;
            pace.observe(Step {
                verified: (drafts, others),
                agreed,
                other: right.then_some((which, agreed + 1)),
                took: (
                    Duration::from_micros(5 * pace.drafting() as u64),
                    Duration::from_micros(100 + row * (drafts + others) as u64),
                ),
            });
        }
        pace
    }

    fn choice(pace: &Pace) -> (usize, usize) {
        (pace.now.drafts, pace.now.others)
    }

    #[test]
    fn as_many_alternatives_stay_as_are_worth_their_rows() {
        assert_eq!(choice(&run(Pace::adaptive(3, 8), 100, 1, 7, |step| step % 4)), (3, 8));
        // Where the likeliest is the right one, the others are left out.
        assert_eq!(choice(&run(Pace::adaptive(3, 8), 100, 5, 0, |step| step % 4)), (3, 1));
        assert_eq!(choice(&run(Pace::adaptive(3, 8), 100, 8, 7, |step| step % 4)), (3, 0));
        assert_eq!(choice(&run(Pace::steady(3, 8), 100, 1000, 7, |_| 0)), (3, 8));
    }

    #[test]
    fn heads_without_alternatives_are_measured_all_the_same() {
        let mut pace = Pace::adaptive(3, 8);
        for _ in 0..40 {
            let drafts = pace.verifying();
            let verifying = Duration::from_micros(100 + 10 * drafts as u64);
            let took = (Duration::from_micros(5), verifying);
            pace.observe(Step { verified: (drafts, 0), agreed: 0, other: None, took });
        }
        assert_eq!(choice(&pace), (0, 0));
    }

    #[test]
    fn drafts_that_are_accepted_and_cheap_stay() {
        let pace = run(Pace::adaptive(3, 0), 100, 10, 0, |step| step % 4);
        assert_eq!((pace.drafting(), pace.verifying()), (3, 3));
    }

    #[test]
    fn drafts_that_are_never_accepted_end() {
        let pace = run(Pace::adaptive(3, 0), 40, 10, 0, |_| 0);
        assert_eq!((pace.drafting(), pace.verifying()), (0, 0));
    }

    #[test]
    fn far_drafts_that_do_not_pay_end_and_near_ones_stay() {
        let pace = run(Pace::adaptive(7, 0), 200, 30, 0, |step| usize::from(step % 8 > 0));
        assert_eq!(pace.drafting(), 1);
    }

    #[test]
    fn a_steady_pace_verifies_all_whatever_it_costs() {
        let pace = run(Pace::steady(3, 0), 100, 1000, 0, |_| 0);
        assert_eq!((pace.drafting(), pace.verifying()), (3, 3));
    }

    #[test]
    fn the_next_text_begins_with_what_was_learned_and_later_tries_again() {
        let learned = run(Pace::adaptive(3, 8), 100, 10, 8, |_| 0);
        assert_eq!(choice(&learned), (0, 0));
        let next = learned.next_text(3, 8);
        assert_eq!(choice(&next), (0, 0));
        let other = run(next, RENEWED_AFTER, 10, 8, |_| 0).next_text(3, 8);
        assert_eq!(choice(&other), (3, 8));
        // A text of which something else is asked has its own trial.
        let asked = run(other, 100, 10, 8, |_| 0).next_text(2, 8);
        assert_eq!(choice(&asked), (2, 8));
    }
}
