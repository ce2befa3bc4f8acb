//! How many drafts and alternatives a step takes: all that are asked for, or as many as pay.

use std::time::Duration;

/// Steps of a text before the first decision and between two.
const TRIAL: usize = 20;
/// In a trial every so many steps verify no draft, to learn what plain decoding costs.
const PLAIN_EVERY: usize = 5;
/// How much faster fewer drafts must be to be changed to.
const MARGIN: f64 = 1.03;

/// The number of drafts for each step of a text. It only ever falls: heads that have passed over a
/// position cannot draft again.
pub(crate) struct Pace {
    /// Heads that draft.
    drafting: usize,
    /// Alternatives that are verified beside the drafts.
    others: usize,
    steps: usize,
    trial: Option<Trial>,
}

/// What was seen of the steps of a text.
struct Trial {
    /// Seconds to verify no draft.
    plain: Vec<f64>,
    /// Steps with the drafts of all heads: without alternatives, and with them.
    full: [Steps; 2],
}

/// Steps of one kind.
struct Steps {
    /// Seconds to draft and to verify.
    seconds: Vec<f64>,
    /// Steps whose first i drafts, or an alternative to the last of these, were accepted, at i − 1.
    accepted: Vec<usize>,
}

impl Trial {
    fn new(drafting: usize) -> Self {
        let none = || Steps { seconds: Vec::new(), accepted: vec![0; drafting] };
        Self { plain: Vec::new(), full: [none(), none()] }
    }
}

impl Pace {
    /// Always `drafting` drafts and as many as `others` alternatives.
    pub(crate) fn steady(drafting: usize, others: usize) -> Self {
        Self { drafting, others, steps: 0, trial: None }
    }

    /// Up to `drafting` drafts, and `others` alternatives or none: as many as are measured to pay.
    pub(crate) fn adaptive(drafting: usize, others: usize) -> Self {
        let trial = (drafting > 0).then(|| Trial::new(drafting));
        Self { drafting, others, steps: 0, trial }
    }

    /// Heads to draft with in this step.
    pub(crate) fn drafting(&self) -> usize {
        self.drafting
    }

    /// How many of their drafts to verify.
    pub(crate) fn verifying(&self) -> usize {
        let plain = self.trial.is_some() && self.steps % PLAIN_EVERY == PLAIN_EVERY - 1;
        if plain { 0 } else { self.drafting }
    }

    /// Most alternatives to verify in this step. In a trial every other step takes none.
    pub(crate) fn others(&self) -> usize {
        if self.trial.is_some() && self.steps % PLAIN_EVERY % 2 == 1 { 0 } else { self.others }
    }

    /// Takes in what a step took that verified `drafts` drafts, with alternatives or without.
    pub(crate) fn observe(
        &mut self,
        drafts: usize,
        others: bool,
        accepted: usize,
        drafting: Duration,
        verifying: Duration,
    ) {
        self.steps += 1;
        let Some(trial) = &mut self.trial else { return };
        if drafts == 0 {
            trial.plain.push(verifying.as_secs_f64());
        } else if drafts == self.drafting {
            let kind = &mut trial.full[usize::from(others)];
            kind.seconds.push((drafting + verifying).as_secs_f64());
            kind.accepted[..accepted].iter_mut().for_each(|count| *count += 1);
        }
        if self.steps.is_multiple_of(TRIAL) {
            let (best, others) = trial.best(self.drafting, self.others > 0);
            if best < self.drafting || others != (self.others > 0) {
                (self.drafting, self.others) = (best, if others { self.others } else { 0 });
                self.trial = (best > 0).then(|| Trial::new(best));
            } else if self.steps >= 3 * TRIAL {
                self.trial = None;
            }
        }
    }
}

impl Trial {
    /// The number of drafts, up to `all`, with the most tokens a second, and whether with
    /// alternatives, where there are `others`.
    fn best(&self, all: usize, others: bool) -> (usize, bool) {
        // Heads that choose among one token have no others.
        let others = others && !self.full[1].seconds.is_empty();
        let now = (all, others);
        let Some(plain) = median(&self.plain) else { return now };
        let rate = |(drafts, others): (usize, bool)| {
            let Steps { seconds, accepted } = &self.full[usize::from(others)];
            let (full, steps) = (median(seconds)?, seconds.len() as f64);
            let seconds = plain + (full - plain) * drafts as f64 / all as f64;
            let tokens: f64 = accepted[..drafts].iter().map(|&n| n as f64 / steps).sum();
            Some((1.0 + tokens) / seconds.max(1e-9))
        };
        let Some(stay) = rate(now).map(|rate| rate * MARGIN) else { return now };
        let kinds = if others { &[false, true][..] } else { &[false] };
        kinds
            .iter()
            .flat_map(|&others| (0..=all).map(move |drafts| (drafts, others)))
            .filter(|&choice| choice != now)
            .filter_map(|choice| Some((choice, rate(choice)?)))
            .filter(|&(_, rate)| rate > stay)
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(now, |(choice, _)| choice)
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

    /// Runs a text of `steps` steps; `accept(step)` drafts are accepted where so many are verified.
    fn run(mut pace: Pace, steps: usize, row: u64, accept: impl Fn(usize) -> usize) -> Pace {
        for step in 0..steps {
            let drafts = pace.verifying();
            let others = if drafts > 0 { pace.others() } else { 0 };
            // An alternative is right in every other step.
            let accepted = accept(step) + usize::from(others > 0 && step % 4 < 2);
            let drafting = Duration::from_micros(5 * pace.drafting() as u64);
            let verifying = Duration::from_micros(100 + row * (drafts + others) as u64);
            pace.observe(drafts, others > 0, accepted.min(drafts), drafting, verifying);
        }
        pace
    }

    #[test]
    fn alternatives_stay_where_rows_are_cheap_and_end_where_they_are_not() {
        let cheap = run(Pace::adaptive(3, 8), 100, 1, |step| step % 4);
        assert_eq!((cheap.drafting(), cheap.others()), (3, 8));
        let dear = run(Pace::adaptive(3, 8), 100, 8, |step| step % 4);
        assert_eq!((dear.drafting(), dear.others()), (3, 0));
        let steady = run(Pace::steady(3, 8), 100, 1000, |_| 0);
        assert_eq!((steady.drafting(), steady.others()), (3, 8));
    }

    #[test]
    fn heads_without_alternatives_are_measured_all_the_same() {
        let mut pace = Pace::adaptive(3, 8);
        for _ in 0..40 {
            let drafts = pace.verifying();
            let verifying = Duration::from_micros(100 + 10 * drafts as u64);
            pace.observe(drafts, false, 0, Duration::from_micros(5), verifying);
        }
        assert_eq!((pace.drafting(), pace.others()), (0, 0));
    }

    #[test]
    fn drafts_that_are_accepted_and_cheap_stay() {
        let pace = run(Pace::adaptive(3, 0), 100, 10, |step| step % 4);
        assert_eq!((pace.drafting(), pace.verifying()), (3, 3));
    }

    #[test]
    fn drafts_that_are_never_accepted_end() {
        let pace = run(Pace::adaptive(3, 0), 40, 10, |_| 0);
        assert_eq!((pace.drafting(), pace.verifying()), (0, 0));
    }

    #[test]
    fn far_drafts_that_do_not_pay_end_and_near_ones_stay() {
        let pace = run(Pace::adaptive(7, 0), 200, 30, |step| usize::from(step % 8 > 0));
        assert_eq!(pace.drafting(), 1);
    }

    #[test]
    fn a_steady_pace_verifies_all_whatever_it_costs() {
        let pace = run(Pace::steady(3, 0), 100, 1000, |_| 0);
        assert_eq!((pace.drafting(), pace.verifying()), (3, 3));
    }
}
