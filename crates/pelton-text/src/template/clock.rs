//! `strftime_now`: today's date in a prompt.

use minijinja::{Error, ErrorKind};
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats `now` in UTC with the directives of Python's `strftime` that name a date or a time: `%Y %y %m %B %b %d %j %A %a %H %I %p %M %S %F %T %%`, and `%-`
/// for a number without leading zero.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = civil(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (month_name, weekday) = (MONTHS[month as usize - 1], WEEKDAYS[(days % 7) as usize]);
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let mut directive = chars.next();
        let plain = directive == Some('-');
        if plain {
            directive = chars.next();
        }
        let mut number =
            |value: u64, width: usize| write!(out, "{value:0width$}", width = if plain { 1 } else { width });
        let written = match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('j') => number(day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('B') => out.write_str(month_name),
            Some('b') => out.write_str(&month_name[..3]),
            Some('A') => out.write_str(weekday),
            Some('a') => out.write_str(&weekday[..3]),
            Some('p') => out.write_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => write!(out, "{year:04}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('%') => out.write_str("%"),
            _ => {
                let message = format!("strftime_now does not know a directive of {format:?}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        written.map_err(|_| Error::new(ErrorKind::WriteFailure, "date cannot be written"))?;
    }
    Ok(out)
}

/// Year, month, day of month and day of year (all from 1) of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64, u64) {
    // Whole cycles of 400 years have 146,097 days; the few years left are walked.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, format: &str) -> String {
        strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).expect("the format is known")
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(at(0, "%A, %d %B %Y, day %j"), "Thursday, 01 January 1970, day 001");
        assert_eq!(at(951_782_399, "%F %T"), "2000-02-28 23:59:59");
        assert_eq!(at(951_782_400, "%F %a"), "2000-02-29 Tue");
        assert_eq!(at(1_735_603_200, "%d %b %Y %j"), "31 Dec 2024 366");
        assert_eq!(at(4_107_542_400, "%F"), "2100-03-01");
        assert_eq!(at(13_574_563_200, "%F"), "2400-02-29");
    }

    #[test]
    fn times_and_bare_numbers_are_written() {
        assert_eq!(at(3_660, "%I:%M %p %-H %-m/%-d/%y 100%%"), "01:01 AM 1 1/1/70 100%");
        assert_eq!(at(43_200, "%I %p"), "12 PM");
    }

    #[test]
    fn unknown_directives_are_refused() {
        for format in ["%Q", "%", "%-"] {
            assert!(strftime(format, UNIX_EPOCH).is_err(), "{format}");
        }
    }
}
