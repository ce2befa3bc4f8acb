//! The learning rate of each step.

use crate::config::{OptimizerSection, ScheduleKind};
use crate::{Error, recipe};

/// The factor, in [0, 1], by which step `step` (from 0) of `steps` multiplies the peak rates.
///
/// Warm-up is the straight line (step + 1) / (warmup + 1), which reaches 1 at step `warmup`;
/// then the schedule's shape takes over and the last step has exactly `final_fraction` (but for
/// a constant schedule).
///
/// ```
/// use foretoken_train::{OptimizerSection, ScheduleKind, schedule_factor};
///
/// let linear = OptimizerSection {
///     schedule: ScheduleKind::Linear,
///     warmup: 3,
///     final_fraction: 0.0,
///     ..OptimizerSection::default()
/// };
/// assert_eq!(schedule_factor(&linear, 0, 8), 0.25);
/// assert_eq!(schedule_factor(&linear, 3, 8), 1.0);
/// assert_eq!(schedule_factor(&linear, 5, 8), 0.5);
/// assert_eq!(schedule_factor(&linear, 7, 8), 0.0);
/// ```
pub fn schedule_factor(section: &OptimizerSection, step: u64, steps: u64) -> f64 {
    let warmup = section.warmup;
    if step < warmup {
        return (step + 1) as f64 / (warmup + 1) as f64;
    }
    let last = steps.saturating_sub(1);
    let start = match section.schedule {
        ScheduleKind::Wsd => {
            let decay = (section.decay_fraction * steps as f64).round() as u64;
            last.saturating_sub(decay).max(warmup)
        }
        _ => warmup,
    };
    if section.schedule == ScheduleKind::Constant || step <= start {
        return 1.0;
    }
    let progress = ((step - start) as f64 / (last.max(start + 1) - start) as f64).min(1.0);
    let above_final = match section.schedule {
        ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        _ => 1.0 - progress,
    };
    section.final_fraction + (1.0 - section.final_fraction) * above_final
}

pub(crate) fn check(section: &OptimizerSection, steps: u64) -> Result<(), Error> {
    recipe::require(section.warmup < steps, "optimizer.warmup", || {
        format!("{} steps of warm-up leave none of train.steps = {steps}", section.warmup)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(schedule: ScheduleKind) -> OptimizerSection {
        OptimizerSection {
            schedule,
            warmup: 10,
            final_fraction: 0.1,
            decay_fraction: 0.25,
            ..OptimizerSection::default()
        }
    }

    #[test]
    fn every_schedule_warms_up_stays_in_range_and_ends_at_the_final_fraction() {
        for kind in
            [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Wsd]
        {
            let section = section(kind);
            let factors: Vec<f64> =
                (0..100).map(|step| schedule_factor(&section, step, 100)).collect();
            assert!((factors[0] - 1.0 / 11.0).abs() < 1e-12);
            assert!(factors[..11].windows(2).all(|pair| pair[0] < pair[1]));
            assert!((factors[10] - 1.0).abs() < 1e-12);
            assert!(factors[10..].windows(2).all(|pair| pair[0] >= pair[1]));
            let end = if kind == ScheduleKind::Constant { 1.0 } else { 0.1 };
            assert!((factors[99] - end).abs() < 1e-12, "{kind:?} ends at {}", factors[99]);
        }
    }

    #[test]
    fn a_cosine_is_halfway_down_in_its_middle_and_wsd_stays_until_its_decay() {
        let cosine = OptimizerSection { warmup: 0, ..section(ScheduleKind::Cosine) };
        assert!((schedule_factor(&cosine, 50, 101) - 0.55).abs() < 1e-12);
        let wsd = section(ScheduleKind::Wsd);
        assert!((schedule_factor(&wsd, 74, 100) - 1.0).abs() < 1e-12);
        assert!(schedule_factor(&wsd, 76, 100) < 1.0);
    }

    #[test]
    fn schedules_of_one_step_and_beyond_the_end_stay_finite() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            let section = OptimizerSection { warmup: 0, ..section(kind) };
            assert!((schedule_factor(&section, 0, 1) - 1.0).abs() < 1e-12);
            assert!((schedule_factor(&section, 500, 100) - 0.1).abs() < 1e-12);
        }
    }
}
