//! Where the value of a point can stand in a chart.

use std::ops::Range;

/// The middle of a label's text and half its width.
pub(crate) struct Label {
    pub(crate) x: f64,
    pub(crate) y: f64,
    half: f64,
}

/// A place that a label should leave free, and how much that matters.
pub(crate) struct Obstacle {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) weight: f64,
}

impl Label {
    const HALF_HEIGHT: f64 = 8.0;

    /// The best place around a point: above, below, then to the sides.
    pub(crate) fn around(
        (x, y): (f64, f64),
        text: &str,
        room: Range<f64>,
        obstacles: &[Obstacle],
        placed: &[Self],
    ) -> Self {
        let half = 3.9 * text.chars().count() as f64 + 1.0;
        let side = half + 7.0;
        let places =
            [(0.0, -14.0), (0.0, 15.0), (side, 0.0), (-side, 0.0), (side, 12.0), (-side, -12.0)];
        let cost = |label: &Self| {
            let covered = obstacles.iter().filter(|o| label.covers(o)).map(|o| o.weight);
            let touched = placed.iter().filter(|other| label.touches(other)).count();
            let outside =
                label.x + label.half > room.end || label.x - label.half < room.start - 12.0;
            covered.sum::<f64>() + 20.0 * touched as f64 + if outside { 20.0 } else { 0.0 }
        };
        let labels = places.map(|(dx, dy)| Self { x: x + dx, y: y + dy, half });
        let [first, rest @ ..] = labels;
        rest.into_iter()
            .fold(first, |best, next| if cost(&next) < cost(&best) { next } else { best })
    }

    fn covers(&self, place: &Obstacle) -> bool {
        (place.x - self.x).abs() < self.half + 2.0
            && (place.y - self.y).abs() < Self::HALF_HEIGHT + 2.0
    }

    fn touches(&self, other: &Self) -> bool {
        (self.x - other.x).abs() < self.half + other.half
            && (self.y - other.y).abs() < 2.0 * Self::HALF_HEIGHT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Range<f64> = 0.0..400.0;

    #[test]
    fn labels_of_lines_that_end_together_do_not_touch() {
        let placed = [Label::around((100.0, 100.0), "1.45", ROOM, &[], &[])];
        let next = Label::around((100.0, 104.0), "1.43", ROOM, &[], &placed);
        assert!(!next.touches(&placed[0]));
    }

    #[test]
    fn a_label_leaves_a_neighbouring_dot_free() {
        let above = [Obstacle { x: 100.0, y: 86.0, weight: 6.0 }];
        let label = Label::around((100.0, 100.0), "1.22", ROOM, &above, &[]);
        assert!(!label.covers(&above[0]));
    }

    #[test]
    fn a_label_at_the_edge_stays_inside() {
        let label = Label::around((399.0, 100.0), "1.22", ROOM, &[], &[]);
        assert!(label.x + label.half <= ROOM.end);
    }
}
