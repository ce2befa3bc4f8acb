//! How many drafts and alternatives a step takes: all that are asked for, or as many as pay.

use std::time::Duration;

use crate::engine::Other;

/// Steps of a trial before the first decision and between two.
const TRIAL: usize = 20;
/// In a trial every so many steps verify no draft, to learn what plain decoding costs.
const PLAIN_EVERY: usize = 5;
/// How much faster another choice must be to be changed to.
const MARGIN: f64 = 1.03;
/// Steps after which fewer drafts are changed to already where that is faster by [`FAR`].
const SOON: usize = 10;
/// As [`MARGIN`], for what few steps have shown.
const FAR: f64 = 1.25;
/// Steps after which the next text tries everything once more; twice as many, up to [`MOST_KEPT`],
/// where that led to as many drafts as the time before.
const RENEWED_AFTER: usize = 250;
const MOST_KEPT: usize = 16 * RENEWED_AFTER;
/// How sure heads may have to be, as probabilities.
const CERTAINTIES: [f64; 10] = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// So many drafts that were as right as heads said are taken to have been seen beside those that were.
const BELIEVED: f64 = 1.0;

/// The number of drafts for each step of a text, and of alternatives to them. Within a text both only
/// ever fall, since heads that have passed over a position cannot draft again, and how sure heads have
/// to be only rises.
pub(crate) struct Pace {
    /// What was asked for.
    most: Choice,
    now: Choice,
    /// Steps since everything was tried.
    steps: usize,
    /// After how many the next text tries everything.
    kept: usize,
    /// Drafts that the trial before led to.
    before: Option<usize>,
    /// Whether what pays is looked for at all.
    adapts: bool,
    /// Whether a head drafts only where the one before was sure enough.
    in_turn: bool,
    trial: Option<Trial>,
}

/// How many drafts, and alternatives to them, a step verifies.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    drafts: usize,
    others: usize,
    /// The logarithm of how likely heads have to think those, and the drafts before, at least.
    least: f64,
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'s> {
    /// Drafts that it verified.
    pub(crate) verified: usize,
    /// How sure each head was that drafted, those among them whose drafts were left out for it
    /// ([`Drafts::certainties`](crate::engine::Drafts::certainties)).
    pub(crate) certainties: &'s [f64],
    /// Alternatives that it verified.
    pub(crate) others: &'s [Other],
    /// Drafts that were right, up to the first that was not.
    pub(crate) agreed: usize,
    /// Which alternative was right in its place.
    pub(crate) other: Option<usize>,
    /// Time to draft and to verify.
    pub(crate) took: (Duration, Duration),
}

/// What was seen of the steps of a text.
#[derive(Default)]
struct Trial {
    /// As [`Pace`] has it.
    in_turn: bool,
    /// Seconds to verify no draft.
    plain: Vec<f64>,
    /// Seconds to draft, by each head that did.
    drafting: Vec<f64>,
    /// The steps that verified what they drafted.
    seen: Vec<Seen>,
}

/// A step that verified what it drafted.
struct Seen {
    verified: usize,
    /// With their [`level`].
    certainties: Vec<(f64, usize)>,
    /// Head and likelihood; `None` where none were asked for.
    others: Option<Vec<(usize, f64)>>,
    agreed: usize,
    other: Option<usize>,
    /// Seconds to verify.
    verifying: f64,
}

impl Seen {
    fn others(&self) -> &[(usize, f64)] {
        self.others.as_deref().unwrap_or_default()
    }
}

/// What a trial has taught.
struct Learned {
    /// Seconds of a step without drafts.
    plain: f64,
    /// To draft, for each head.
    head: f64,
    /// To verify a draft.
    draft: f64,
    /// To verify an alternative.
    other: f64,
    /// How often the drafts of each head were right, by how sure it was ([`level`]).
    right: Vec<[f64; CERTAINTIES.len() + 1]>,
}

impl Pace {
    /// Always `drafts` drafts and as many as `others` alternatives.
    pub(crate) fn steady(drafts: usize, others: usize) -> Self {
        let now = Choice { drafts, others, least: f64::NEG_INFINITY };
        Self {
            most: now,
            now,
            steps: 0,
            kept: RENEWED_AFTER,
            before: None,
            adapts: false,
            in_turn: false,
            trial: None,
        }
    }

    /// Up to `drafts` drafts and `others` alternatives: as many as are measured to pay. Heads that
    /// draft `in_turn` do so only where the one before was sure enough.
    pub(crate) fn adaptive(drafts: usize, others: usize, in_turn: bool) -> Self {
        let trial = Trial::of(drafts, in_turn);
        Self { adapts: true, in_turn, trial, ..Self::steady(drafts, others) }
    }

    /// The pace of the next text, where the same is asked for: what was learned is kept for a while.
    pub(crate) fn next_text(self, drafts: usize, others: usize) -> Self {
        let renewed = Self::adaptive(drafts, others, self.in_turn);
        if (drafts, others) != (self.most.drafts, self.most.others) {
            return renewed;
        }
        if self.steps < self.kept {
            return self;
        }
        let found = Some(self.now.drafts);
        let kept = if self.before == found { 2 * self.kept } else { RENEWED_AFTER };
        Self { kept: kept.min(MOST_KEPT), before: found, ..renewed }
    }

    /// Heads to draft with in this step at most.
    pub(crate) fn drafting(&self) -> usize {
        self.now.drafts
    }

    /// Whether to verify what they draft.
    pub(crate) fn verifies(&self) -> bool {
        self.trial.is_none() || self.steps % PLAIN_EVERY != PLAIN_EVERY - 1
    }

    /// Most alternatives to verify in this step. In a trial every other step takes none.
    pub(crate) fn others(&self) -> usize {
        let none = self.trial.is_some() && self.steps % PLAIN_EVERY % 2 == 1;
        if none { 0 } else { self.now.others }
    }

    /// The logarithm of how likely drafts and alternatives have to be thought at least; `None` where
    /// that does not matter.
    pub(crate) fn least(&self) -> Option<f64> {
        let matters = self.trial.is_some() || self.now.least > f64::NEG_INFINITY;
        (self.adapts && matters).then_some(self.now.least)
    }

    /// Takes in what a step did.
    pub(crate) fn observe(&mut self, step: Step<'_>) {
        let (verifies, asked) = (self.verifies(), self.others() > 0);
        self.steps += 1;
        let Some(trial) = &mut self.trial else { return };
        if step.certainties.is_empty() {
            // At the end of a text nothing is drafted any more.
            return;
        }
        trial.observe(step, verifies, asked);
        let steps = trial.drafting.len();
        let best = match steps {
            SOON => trial.best(self.now, FAR, 1),
            steps if steps.is_multiple_of(TRIAL) => trial.best(self.now, MARGIN, 0),
            _ => return,
        };
        if best != self.now {
            self.now = best;
            self.trial = Trial::of(best.drafts, self.in_turn);
        } else if steps >= 3 * TRIAL {
            self.trial = None;
        }
    }
}

impl Trial {
    /// None where there are no drafts to try.
    fn of(drafts: usize, in_turn: bool) -> Option<Self> {
        (drafts > 0).then(|| Self { in_turn, ..Self::default() })
    }

    fn observe(&mut self, step: Step<'_>, verifies: bool, asked: bool) {
        let Step { verified, certainties, others, agreed, other, took: (drafting, verifying) } =
            step;
        let verifying = verifying.as_secs_f64();
        self.drafting.push(drafting.as_secs_f64() / certainties.len() as f64);
        if verified == 0 {
            self.plain.push(verifying);
        }
        if verifies {
            let others = || others.iter().map(|other| (other.head, other.likelihood)).collect();
            self.seen.push(Seen {
                verified,
                certainties: certainties.iter().map(|&c| (c, level(c))).collect(),
                others: asked.then(others),
                agreed,
                other,
                verifying,
            });
        }
    }

    /// The choice with the most tokens a second, of those of `fewest` drafts or more that do with what
    /// `now` has; `now` where no other is better by the factor `margin`.
    fn best(&self, now: Choice, margin: f64, fewest: usize) -> Choice {
        // Heads that choose among one token have no others.
        let asked = self.seen.iter().any(|step| step.others.is_some());
        let none = asked && self.seen.iter().all(|step| step.others().is_empty());
        let now = if none { Choice { others: 0, ..now } } else { now };
        let Some(learned) = self.learned() else { return now };
        let stay = self.rate(now, &learned) * margin;
        let halves = std::iter::successors(Some(now.others), |&n| (n > 0).then_some(n / 2));
        let others: Vec<usize> = halves.collect();
        let surer = CERTAINTIES.iter().map(|share| share.ln()).filter(|&least| least > now.least);
        let leasts: Vec<f64> = surer.rev().chain([now.least]).collect();
        let leasts = leasts.as_slice();
        let choices = (fewest..=now.drafts).flat_map(|drafts| {
            let others = others.iter().filter(move |&&others| drafts > 0 || others == 0);
            others.flat_map(move |&others| {
                leasts.iter().map(move |&least| Choice { drafts, others, least })
            })
        });
        // Of those that are alike the last, which leaves out the least.
        choices
            .map(|choice| (choice, self.rate(choice, &learned)))
            .filter(|&(_, rate)| rate > stay)
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(now, |(choice, _)| choice)
    }

    /// `None` where too little was seen.
    fn learned(&self) -> Option<Learned> {
        let plain = median(self.plain.iter().copied())?;
        let head = median(self.drafting.iter().copied())?;
        let each = |seconds: f64, rows: usize| ((seconds - plain) / rows as f64).max(0.0);
        let drafts = || self.seen.iter().filter(|step| step.verified > 0);
        let without = drafts().filter(|step| step.others().is_empty());
        let draft = median(without.map(|step| each(step.verifying, step.verified)));
        let rows = |step: &Seen| step.verified + step.others().len();
        // Where no step was without alternatives, a row is a row; where none had drafts, it costs nothing.
        let draft = draft.or_else(|| median(drafts().map(|step| each(step.verifying, rows(step)))));
        let draft = draft.unwrap_or(0.0);
        let other = drafts()
            .filter(|step| !step.others().is_empty())
            .map(|step| each(step.verifying - draft * step.verified as f64, step.others().len()));
        let other = median(other).unwrap_or(draft);
        let most = self.seen.iter().map(|step| step.verified).max().unwrap_or(0);
        let right = (1..=most).map(|head| {
            let [mut drafts, mut believed, mut right] = [[0.0; CERTAINTIES.len() + 1]; 3];
            for step in self.seen.iter().filter(|step| step.verified >= head) {
                let (certainty, level) = step.certainties[head - 1];
                drafts[level] += 1.0;
                believed[level] += certainty.exp();
                right[level] += f64::from(u8::from(step.agreed >= head));
            }
            for ((right, believed), drafts) in right.iter_mut().zip(believed).zip(drafts) {
                if drafts > 0.0 {
                    *right = (*right + BELIEVED * believed / drafts) / (BELIEVED + drafts);
                }
            }
            right
        });
        Some(Learned { plain, head, draft, other, right: right.collect() })
    }

    /// Tokens a second by a choice, had it been made in the steps that were seen.
    fn rate(&self, choice: Choice, learned: &Learned) -> f64 {
        let Choice { drafts, others, least } = choice;
        let (mut heads, mut verified, mut agreed) = (0, 0, 0.0);
        let (mut beside, mut right, mut asked) = (0, 0, 0);
        for step in &self.seen {
            let sure = step.certainties.iter().take_while(|&&(certainty, _)| certainty >= least);
            let sure = sure.count();
            // The head that is not sure has drafted all the same.
            let asked_heads = if self.in_turn { drafts.min(sure + 1) } else { drafts };
            heads += asked_heads.min(step.certainties.len());
            let sure = drafts.min(sure);
            verified += sure;
            let expected = step.certainties[..sure].iter().zip(&learned.right);
            agreed += expected.map(|(&(_, level), right)| right[level]).sum::<f64>();
            let Some(seen) = &step.others else { continue };
            asked += 1;
            let taken = |&(head, likelihood): &(usize, f64)| head <= sure && likelihood >= least;
            beside += seen.iter().filter(|&other| taken(other)).count().min(others);
            right += usize::from(step.other.is_some_and(|which| {
                let before = seen[..which].iter().filter(|&other| taken(other)).count();
                taken(&seen[which]) && before < others
            }));
        }
        let share = |part: f64, all: usize| part / all.max(1) as f64;
        let steps = self.seen.len();
        let seconds = learned.plain
            + share(heads as f64, steps) * learned.head
            + share(verified as f64, steps) * learned.draft
            + share(beside as f64, asked) * learned.other;
        (1.0 + share(agreed, steps) + share(right as f64, asked)) / seconds.max(1e-9)
    }
}

/// Between which of [`CERTAINTIES`] the exponential of `certainty` lies.
fn level(certainty: f64) -> usize {
    CERTAINTIES.iter().filter(|share| share.ln() <= certainty).count()
}

fn median(times: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = times.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a text of `steps` steps, each row of which takes `row` µs; `agree(step)` drafts are right
    /// where so many are verified, and in every other step the `which`th alternative to the next, if
    /// there are as many. Heads are sure of all that they draft.
    fn run(
        pace: Pace,
        steps: usize,
        row: u64,
        which: usize,
        agree: impl Fn(usize) -> usize,
    ) -> Pace {
        run_sure(pace, steps, row, which, |step| ([0.0; 8], agree(step)))
    }

    /// As [`run`], where heads are as certain as `sure` says beside how many drafts are right.
    fn run_sure(
        mut pace: Pace,
        steps: usize,
        row: u64,
        which: usize,
        sure: impl Fn(usize) -> ([f64; 8], usize),
    ) -> Pace {
        for step in 0..steps {
            let (certainties, agreed) = sure(step);
            let least = pace.least().unwrap_or(f64::NEG_INFINITY);
            let enough = certainties.iter().take_while(|&&certainty| certainty >= least).count();
            let heads = if pace.in_turn { enough + 1 } else { 8 }.min(pace.drafting());
            let verified = if pace.verifies() { pace.drafting().min(enough) } else { 0 };
            let others = if verified > 0 { pace.others() } else { 0 };
            let agreed = agreed.min(verified);
            let right = step % 4 < 2 && which < others && agreed < verified;
            let at = |place| if right && place == which { agreed + 1 } else { 1 };
            let other = |place| Other { head: at(place), token: 0, likelihood: 0.0 };
            let others: Vec<Other> = (0..others).map(other).collect();
            pace.observe(Step {
                verified,
                certainties: &certainties[..heads],
                others: &others,
                agreed,
                other: right.then_some(which),
                took: (
                    Duration::from_micros(5 * heads as u64),
                    Duration::from_micros(100 + row * (verified + others.len()) as u64),
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
        assert_eq!(choice(&run(Pace::adaptive(3, 8, true), 100, 1, 7, |step| step % 4)), (3, 8));
        // Where the likeliest is the right one, the others are left out.
        assert_eq!(choice(&run(Pace::adaptive(3, 8, true), 100, 5, 0, |step| step % 4)), (3, 1));
        assert_eq!(choice(&run(Pace::adaptive(3, 8, true), 100, 8, 7, |step| step % 4)), (3, 0));
        assert_eq!(choice(&run(Pace::steady(3, 8), 100, 1000, 7, |_| 0)), (3, 8));
    }

    #[test]
    fn heads_without_alternatives_are_measured_all_the_same() {
        let mut pace = Pace::adaptive(3, 8, true);
        for _ in 0..40 {
            let verified = if pace.verifies() { pace.drafting() } else { 0 };
            pace.observe(Step {
                verified,
                certainties: &[-0.1, -0.2, -0.3][..pace.drafting()],
                others: &[],
                agreed: 0,
                other: None,
                took: (Duration::from_micros(5), Duration::from_micros(100 + 10 * verified as u64)),
            });
        }
        assert_eq!(choice(&pace), (0, 0));
    }

    #[test]
    fn rows_that_cost_much_are_for_drafts_that_heads_are_sure_of() {
        let [sure, unsure] = [0.9f64.ln(), 0.25f64.ln()];
        // In one step of three they are, and right then; else one draft in eight is right.
        let steps = |step: usize| match step % 3 {
            0 => ([sure; 8], 2),
            _ => ([unsure; 8], usize::from(step % 8 == 1)),
        };
        let pace = run_sure(Pace::adaptive(2, 0, true), 200, 60, 0, steps);
        assert_eq!(pace.drafting(), 2);
        assert!(pace.least().is_some_and(|least| least > unsure && least <= sure));
        // Where rows cost next to nothing, all are verified.
        let pace = run_sure(Pace::adaptive(2, 0, true), 200, 1, 0, steps);
        assert!(pace.drafting() == 2 && pace.now.least <= unsure, "{:?}", pace.now);
        // Heads that are never sure enough end.
        let pace = run_sure(Pace::adaptive(2, 0, true), 200, 60, 0, |_| ([unsure; 8], 0));
        assert_eq!(pace.drafting(), 0);
    }

    #[test]
    fn heads_that_all_draft_whatever_the_first_is_sure_of_cost_as_much() {
        let [sure, unsure] = [0.95f64.ln(), 0.3f64.ln()];
        let steps = |step: usize| match step % 10 {
            0..2 => ([sure; 8], 3),
            _ => ([unsure; 8], usize::from(step % 10 < 4)),
        };
        // Each head takes 5 µs of 100: three of them are worth it where they draft in turn.
        let in_turn = run_sure(Pace::adaptive(3, 0, true), 300, 60, 0, steps);
        assert_eq!(in_turn.drafting(), 3);
        let slow = |pace: Pace| {
            let mut pace = pace;
            for step in 0..200 {
                let (certainties, agreed) = steps(step);
                let least = pace.least().unwrap_or(f64::NEG_INFINITY);
                let enough = certainties.iter().take_while(|&&c| c >= least).count();
                let drafts = pace.drafting();
                let heads = if pace.in_turn { drafts.min(enough + 1) } else { drafts };
                let verified = if pace.verifies() { drafts.min(enough) } else { 0 };
                let (took, row) = (Duration::from_micros(25 * heads as u64), 40 * verified as u64);
                pace.observe(Step {
                    verified,
                    certainties: &certainties[..heads],
                    others: &[],
                    agreed: agreed.min(verified),
                    other: None,
                    took: (took, Duration::from_micros(100 + row)),
                });
            }
            pace.drafting()
        };
        assert_eq!(slow(Pace::adaptive(3, 0, false)), 0);
        assert!(slow(Pace::adaptive(3, 0, true)) > 0);
    }

    #[test]
    fn what_is_far_too_much_is_left_out_soon() {
        let pace = run(Pace::adaptive(7, 0, true), SOON, 50, 0, |step| usize::from(step % 8 > 0));
        assert_eq!(pace.drafting(), 1);
    }

    #[test]
    fn steps_that_draft_nothing_teach_nothing() {
        let mut pace = Pace::adaptive(3, 8, true);
        for _ in 0..100 {
            let took = (Duration::ZERO, Duration::from_micros(100));
            let (certainties, others) = (&[][..], &[][..]);
            pace.observe(Step { verified: 0, certainties, others, agreed: 0, other: None, took });
        }
        assert_eq!((choice(&pace), pace.verifies()), ((3, 8), true));
    }

    #[test]
    fn drafts_that_are_accepted_and_cheap_stay() {
        let pace = run(Pace::adaptive(3, 0, true), 100, 10, 0, |step| step % 4);
        assert!(pace.drafting() == 3 && pace.verifies());
    }

    #[test]
    fn drafts_that_are_never_accepted_end() {
        let pace = run(Pace::adaptive(3, 0, true), 40, 10, 0, |_| 0);
        assert_eq!(pace.drafting(), 0);
    }

    #[test]
    fn far_drafts_that_do_not_pay_end_and_near_ones_stay() {
        let pace = run(Pace::adaptive(7, 0, true), 200, 30, 0, |step| usize::from(step % 8 > 0));
        assert_eq!(pace.drafting(), 1);
    }

    #[test]
    fn a_steady_pace_verifies_all_whatever_it_costs() {
        let pace = run(Pace::steady(3, 0), 100, 1000, 0, |_| 0);
        assert!(pace.drafting() == 3 && pace.verifies());
    }

    #[test]
    fn the_next_text_begins_with_what_was_learned_and_later_tries_again() {
        let learned = run(Pace::adaptive(3, 8, true), 100, 10, 8, |_| 0);
        assert_eq!(choice(&learned), (0, 0));
        let next = learned.next_text(3, 8);
        assert_eq!(choice(&next), (0, 0));
        let other = run(next, RENEWED_AFTER, 10, 8, |_| 0).next_text(3, 8);
        assert_eq!(choice(&other), (3, 8));
        // Where it leads to the same, the next time is later.
        let same = run(other, RENEWED_AFTER, 10, 8, |_| 0).next_text(3, 8);
        assert_eq!(choice(&same), (3, 8));
        let still = run(same, RENEWED_AFTER, 10, 8, |_| 0).next_text(3, 8);
        assert_eq!(choice(&still), (0, 0));
        // A text of which something else is asked has its own trial.
        let asked = still.next_text(2, 8);
        assert_eq!(choice(&asked), (2, 8));
    }
}
