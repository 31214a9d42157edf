//! Times as people type them.

use std::time::Duration;

/// `1h`, `2m` or `2min`, `30s`, `1.5s`, `500ms`, `250us`, and several of them in a row: `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut seconds = 0.0;
    let mut rest = text;
    loop {
        let unit_at =
            rest.find(|c: char| c.is_ascii_alphabetic()).ok_or("unit is missing: 500ms, 30s, 2m, 1h, 1h30m")?;
        let (number, behind) = rest.split_at(unit_at);
        let end = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let unit = &behind[..end];
        let number: f64 = number.trim().parse().map_err(|_| format!("{number:?} is not a number"))?;
        seconds += match unit {
            "us" => number * 1e-6,
            "ms" => number * 1e-3,
            "s" => number,
            "m" | "min" => number * 60.0,
            "h" => number * 3600.0,
            _ => return Err(format!("unit {unit:?} is none of us, ms, s, m, h")),
        };
        rest = &behind[end..];
        if rest.is_empty() {
            return Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is not a time"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("1min"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("1h30m5s"), Ok(Duration::from_secs(5405)));
        for bad in ["30", "s", "1h30", "1d", "-1s", "1e300h", "NaNs"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
