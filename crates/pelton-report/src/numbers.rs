//! How numbers are written in every form of a report.

/// Four significant digits or the whole number, whichever is more.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v < 10.0 => format!("{value:.3}"),
        v if v < 100.0 => format!("{value:.2}"),
        v if v < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A share of one as per cent, with a digit more where it is small.
pub fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0 %".to_owned(),
        p if p.abs() < 1.0 => format!("{p:.2} %"),
        p => format!("{p:.1} %"),
    }
}

/// A number without trailing zeros, as on axes: `0.5`, `20`, `1500`, `20k`, `3M`.
pub fn plain(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        0.0 => 0,
        v => (3 - v.log10().floor() as i32).clamp(0, 9) as usize,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

/// `2026-11-22 15:06:23 UTC` of seconds since 1970.
pub fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Days to a date of the Gregorian calendar in years that begin with March (Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        assert_eq!([0.5, 12.3456, 123.456, 12345.6].map(number), ["0.500", "12.35", "123.5", "12346"]);
        assert_eq!([0.0, 0.004, 0.5, 1.0].map(percent), ["0 %", "0.40 %", "50.0 %", "100.0 %"]);
    }

    #[test]
    fn numbers_on_axes_have_no_trailing_zeros() {
        let values = [0.0, 0.5, 0.025, 20.0, 1500.0, 20_000.0, 3e6, -2.5];
        assert_eq!(values.map(plain), ["0", "0.5", "0.025", "20", "1500", "20k", "3M", "-2.5"]);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let dates = [(0, "1970-01-01 00:00:00 UTC"), (951_782_400, "2000-02-29 00:00:00 UTC")];
        for (unix_s, date) in dates.into_iter().chain([(1_795_359_983, "2026-11-22 15:06:23 UTC")]) {
            assert_eq!(utc(unix_s), date);
        }
    }
}
