//! Cron expressions, and what is wrong with one, for people: which field, what is in it, what may be. Pure.

use croner::Cron;
use croner::parser::{CronParser, Seconds};

/// A field of an expression: what people call it, and what it takes beside `*`, lists, ranges and steps.
struct Field(&'static str, &'static str);

/// The fields of an expression that has all of them.
const FIELDS: [Field; 7] = [
    Field("the second", "0-59"),
    Field("the minute", "0-59"),
    Field("the hour", "0-23"),
    Field("the day of the month", "1-31, `L` for the last, `15W` for the weekday next to it"),
    Field("the month", "1-12, JAN-DEC"),
    Field("the day of the week", "0-7, where 0 and 7 are Sunday, SUN-SAT, `FRI#2` for the second, `FRIL` for the last"),
    Field("the year", "1-5000"),
];
/// What stands for several fields.
const NAMES: &str = "`@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly`";
/// No day of the week, and no other field, has a number as large as the years that people write.
const YEAR_MIN: u32 = 1_000;

/// Reads an expression: five fields from the minute on, or six with the second in front, or seven with a year behind; or a
/// name such as `@daily`.
///
/// # Errors
/// What is wrong, and what is allowed there.
pub(crate) fn parse(text: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Optional).build();
    parser.parse(text).map_err(|_| wrong(text))
}

/// What is wrong with an expression that is none.
fn wrong(text: &str) -> String {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if let [name] = *fields
        && name.starts_with('@')
    {
        return format!("`{name}` is none of {NAMES}");
    }
    let left_out = match fields.len() {
        5 => 1,
        6 | 7 => 0,
        count => {
            return format!(
                "five fields are expected (minute, hour, day of the month, month, day of the week), or six with the second \
                 in front, or seven with the year behind those, and not {count}; write one such as `0 9 * * MON-FRI`"
            );
        }
    };
    if let [.., last] = *fields
        && fields.len() == 6
        && number(last).is_some_and(|number| number >= YEAR_MIN)
    {
        return format!("of six fields the first is the second, and a year is the seventh; write `0 {text}`");
    }
    let named = fields.iter().zip(left_out..FIELDS.len()).enumerate();
    let mut items = named.flat_map(|(at, (field, which))| field.split(',').map(move |item| (at + 1, which, item)));
    let Some((at, which, item)) = items.find(|(_, which, item)| !takes(*which, item)) else {
        return "it is not understood".into();
    };
    let Field(name, allowed) = &FIELDS[which];
    format!(
        "field {at}, {name}, has `{item}`, {}; allowed are {allowed}, and `*`, lists, ranges and steps",
        problem(item)
    )
}

/// Whether a field takes this, whatever the others hold. Nothing between two commas counts as nothing.
fn takes(which: usize, item: &str) -> bool {
    let mut fields = ["*"; FIELDS.len()];
    fields[which] = item;
    item.is_empty() || CronParser::new().parse(&fields.join(" ")).is_ok()
}

/// Why a field does not take this.
fn problem(item: &str) -> String {
    let (of, step) = item.split_once('/').map_or((item, None), |(of, step)| (of, Some(step)));
    let range = of.split_once('-').and_then(|(from, to)| Some((number(from)?, number(to)?)));
    match (step, range) {
        (Some(step), _) if number(step).is_none_or(|step| step == 0) => "whose step is no number from 1 on".into(),
        (Some(step), None) if of.is_empty() || number(of).is_some() => {
            format!("whose step has no `*` or range in front, as `*/{step}` has")
        }
        (_, Some((from, to))) if from > to => "a range that ends before it begins".into(),
        (_, Some(_)) => "a range that is out of bounds".into(),
        (None, None) if number(of).is_some() => "which is out of bounds".into(),
        _ => "which is not understood there".into(),
    }
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_its_field_and_what_is_allowed() {
        let cases = [
            ("61 * * * *", "field 1, the minute, has `61`, which is out of bounds; allowed are 0-59,"),
            ("61 * * * * *", "field 1, the second, has `61`, which is out of bounds; allowed are 0-59,"),
            ("0 0,24 * * *", "field 2, the hour, has `24`, which is out of bounds; allowed are 0-23,"),
            (
                "0 9 30-40 * *",
                "field 3, the day of the month, has `30-40`, a range that is out of bounds; allowed are 1-31,",
            ),
            ("0 17-9 * * *", "field 2, the hour, has `17-9`, a range that ends before it begins; allowed are 0-23,"),
            ("0 9 * XXX *", "field 4, the month, has `XXX`, which is not understood there; allowed are 1-12, JAN-DEC,"),
            ("0 9 * * 8", "field 5, the day of the week, has `8`, which is out of bounds; allowed are 0-7,"),
            ("0 9 * * MON#9", "field 5, the day of the week, has `MON#9`, which is not understood there;"),
            (
                "5/10 * * * *",
                "field 1, the minute, has `5/10`, whose step has no `*` or range in front, as `*/10` has;",
            ),
            ("*/0 * * * *", "field 1, the minute, has `*/0`, whose step is no number from 1 on;"),
            ("0 9 L-3 * *", "field 3, the day of the month, has `L-3`, which is not understood there;"),
            ("0 0 9 1 1 * 9999", "field 7, the year, has `9999`, which is out of bounds; allowed are 1-5000,"),
            (
                "0 9 25 12 * 2027",
                "of six fields the first is the second, and a year is the seventh; write `0 0 9 25 12 * 2027`",
            ),
            ("* * * *", "five fields are expected (minute, hour,"),
            ("@noon", "`@noon` is none of `@hourly`, `@daily`,"),
        ];
        for (text, said) in cases {
            let problem = parse(text).unwrap_err();
            assert!(problem.starts_with(said), "{text}: {problem}");
        }
    }

    #[test]
    fn what_is_advised_is_understood() {
        for advised in ["0 0 9 25 12 * 2027", "*/10 * * * *", "0 9 L * FRIL", "0 9 15W JAN-DEC FRI#2", "1,,2 * * * *"] {
            assert!(parse(advised).is_ok(), "{advised}");
        }
        for name in NAMES.split('`').filter(|name| name.starts_with('@')) {
            assert!(parse(name).is_ok(), "{name}");
        }
    }
}
