//! Numbers as people read them.

/// `n` with thin groups of three digits: `98,362,432`.
pub(super) fn grouped(n: impl Into<i128>) -> String {
    let n = n.into();
    let digits = n.unsigned_abs().to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if n < 0 { format!("-{text}") } else { text }
}

/// `n`, with the words for one or those for several: `1 unit goes`, `3 units go`.
pub(super) fn counted(n: impl Into<i128>, one: &str, several: &str) -> String {
    let n = n.into();
    let words = if n == 1 { one } else { several };
    format!("{} {words}", grouped(n))
}

/// `part` of `whole` in percent: `3.2%`.
pub(super) fn percent(part: i64, whole: u64) -> String {
    let percent = match whole {
        0 => 0.0,
        whole => part as f64 * 100.0 / whole as f64,
    };
    // What is next to nothing has no sign.
    let rounded = (percent * 10.0).round() / 10.0 + 0.0;
    format!("{rounded:.1}%")
}

/// `number` with three digits that say something, and no more than seven behind the point: `0.00123`.
pub(super) fn significant(number: f64) -> String {
    let magnitude = match number == 0.0 {
        true => 0.0,
        false => number.abs().log10().floor(),
    };
    let digits = (2.0 - magnitude).clamp(0.0, 7.0) as usize;
    format!("{number:.digits$}")
}

/// `bytes` in MiB: `93.8`.
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-98_362_432, "-98,362,432"),
        ] {
            assert_eq!(grouped(n), text);
        }
    }

    #[test]
    fn three_digits_say_something() {
        for (number, text) in [
            (0.0, "0.00"),
            (12345.6, "12346"),
            (1.2345, "1.23"),
            (0.12345, "0.123"),
            (-0.000_123_45, "-0.000123"),
            (1e-12, "0.0000000"),
        ] {
            assert_eq!(significant(number), text);
        }
    }

    #[test]
    fn percentages_have_one_digit() {
        assert_eq!(percent(32, 1000), "3.2%");
        assert_eq!(percent(-1, 100), "-1.0%");
        assert_eq!(percent(1, 0), "0.0%");
        assert_eq!(percent(-1, 1_000_000), "0.0%");
    }

    #[test]
    fn one_is_not_several() {
        assert_eq!(counted(1, "unit goes", "units go"), "1 unit goes");
        assert_eq!(counted(0, "unit goes", "units go"), "0 units go");
        assert_eq!(counted(1234, "unit goes", "units go"), "1,234 units go");
    }
}
