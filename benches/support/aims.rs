//! What a benchmark is to reach, and whether it did.

use std::process::ExitCode;

/// One aim, and what came of it.
struct Row {
    what: String,
    aim: String,
    value: String,
    /// None where it could not be measured here.
    met: Option<bool>,
}

/// The aims of one benchmark.
#[derive(Default)]
pub struct Aims(Vec<Row>);

impl Aims {
    pub fn at_least(&mut self, what: impl Into<String>, unit: &str, aim: f64, value: f64) {
        self.push(
            what.into(),
            format!("≥ {aim}{unit}"),
            unit,
            value,
            value >= aim,
        );
    }

    pub fn at_most(&mut self, what: impl Into<String>, unit: &str, aim: f64, value: f64) {
        self.push(
            what.into(),
            format!("≤ {aim}{unit}"),
            unit,
            value,
            value <= aim,
        );
    }

    fn push(&mut self, what: String, aim: String, unit: &str, value: f64, met: bool) {
        self.0.push(Row {
            what,
            aim,
            value: format!("{value:.2}{unit}"),
            // A comparison with what is no number is false either way.
            met: (!value.is_nan()).then_some(met),
        });
    }

    /// An aim that this machine lacks something for.
    pub fn unknown(&mut self, what: impl Into<String>, aim: &str, reason: impl Into<String>) {
        self.0.push(Row {
            what: what.into(),
            aim: aim.to_owned(),
            value: reason.into(),
            met: None,
        });
    }

    /// Says of every aim whether it is met. One that is missed is a failure,
    /// unless `unfit` says why none can be judged.
    pub fn judge(&self, unfit: Option<&str>) -> ExitCode {
        println!("\n{:58} {:>12} {:>12}", "aim", "", "measured");
        for Row {
            what,
            aim,
            value,
            met,
        } in &self.0
        {
            let verdict = match met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not measured",
            };
            println!("{what:58} {aim:>12} {value:>12}  {verdict}");
        }
        let missed = self.0.iter().filter(|row| row.met == Some(false)).count();
        match unfit {
            Some(reason) => {
                println!("not judged: {reason}");
                ExitCode::SUCCESS
            }
            None if missed > 0 => {
                println!("{missed} of {} aims missed", self.0.len());
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        }
    }
}
