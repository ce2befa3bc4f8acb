//! How many drafts a step takes: all that are asked for, or as many as pay.

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
    steps: usize,
    trial: Option<Trial>,
}

/// What was seen of the steps of a text.
struct Trial {
    /// Seconds to draft with all heads.
    drafting: Vec<f64>,
    /// Seconds to verify no draft.
    plain: Vec<f64>,
    /// Seconds to verify the drafts of all heads.
    verifying: Vec<f64>,
    /// Steps whose first i drafts were accepted, at i − 1.
    accepted: Vec<usize>,
}

impl Trial {
    fn new(drafting: usize) -> Self {
        let accepted = vec![0; drafting];
        Self { drafting: Vec::new(), plain: Vec::new(), verifying: Vec::new(), accepted }
    }
}

impl Pace {
    /// Always `drafting` drafts.
    pub(crate) fn steady(drafting: usize) -> Self {
        Self { drafting, steps: 0, trial: None }
    }

    /// Up to `drafting` drafts: as many as are measured to pay.
    pub(crate) fn adaptive(drafting: usize) -> Self {
        Self { drafting, steps: 0, trial: (drafting > 0).then(|| Trial::new(drafting)) }
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

    /// Takes in what a step took that verified `drafts` drafts.
    pub(crate) fn observe(
        &mut self,
        drafts: usize,
        accepted: usize,
        drafting: Duration,
        verifying: Duration,
    ) {
        self.steps += 1;
        let Some(trial) = &mut self.trial else { return };
        trial.drafting.push(drafting.as_secs_f64());
        if drafts == 0 {
            trial.plain.push(verifying.as_secs_f64());
        } else if drafts == self.drafting {
            trial.verifying.push(verifying.as_secs_f64());
            trial.accepted[..accepted].iter_mut().for_each(|count| *count += 1);
        }
        if self.steps.is_multiple_of(TRIAL) {
            let best = trial.best(self.drafting);
            if best < self.drafting {
                self.drafting = best;
                self.trial = (best > 0).then(|| Trial::new(best));
            } else if self.steps >= 3 * TRIAL {
                self.trial = None;
            }
        }
    }
}

impl Trial {
    /// The number of drafts, up to `all`, with the most tokens a second.
    fn best(&self, all: usize) -> usize {
        let medians = [&self.drafting, &self.plain, &self.verifying].map(|times| median(times));
        let [Some(drafting), Some(plain), Some(verifying)] = medians else { return all };
        let steps = self.verifying.len() as f64;
        let rate = |drafts: usize| {
            let share = drafts as f64 / all as f64;
            let seconds = drafting * share + plain + (verifying - plain) * share;
            let tokens: f64 = self.accepted[..drafts].iter().map(|&n| n as f64 / steps).sum();
            (1.0 + tokens) / seconds.max(1e-9)
        };
        let stay = rate(all) * MARGIN;
        (0..all)
            .map(|drafts| (drafts, rate(drafts)))
            .filter(|&(_, rate)| rate > stay)
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(all, |(drafts, _)| drafts)
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
            let accepted = accept(step).min(drafts);
            let drafting = Duration::from_micros(5 * pace.drafting() as u64);
            let verifying = Duration::from_micros(100 + row * drafts as u64);
            pace.observe(drafts, accepted, drafting, verifying);
        }
        pace
    }

    #[test]
    fn drafts_that_are_accepted_and_cheap_stay() {
        let pace = run(Pace::adaptive(3), 100, 10, |step| step % 4);
        assert_eq!((pace.drafting(), pace.verifying()), (3, 3));
    }

    #[test]
    fn drafts_that_are_never_accepted_end() {
        let pace = run(Pace::adaptive(3), 40, 10, |_| 0);
        assert_eq!((pace.drafting(), pace.verifying()), (0, 0));
    }

    #[test]
    fn far_drafts_that_do_not_pay_end_and_near_ones_stay() {
        let pace = run(Pace::adaptive(7), 200, 30, |step| usize::from(step % 8 > 0));
        assert_eq!(pace.drafting(), 1);
    }

    #[test]
    fn a_steady_pace_verifies_all_whatever_it_costs() {
        let pace = run(Pace::steady(3), 100, 1000, |_| 0);
        assert_eq!((pace.drafting(), pace.verifying()), (3, 3));
    }
}
