//! Running a property on generated inputs, and showing one that fails.

use super::entry::Layer;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// Words of the errors for stacks that have a meaning and are refused all the
/// same: see ADR 3.
pub const NAMED: &[&str] = &[
    "such a layer cannot be unpacked",
    // The layer's own links, in a circle that what comes through others breaks.
    "passes more than 40 symbolic links",
];

/// Runs `check` on that many generated inputs. `PROPTEST_CASES` gives another
/// number.
pub fn run<S: Strategy>(
    cases: u32,
    strategy: S,
    check: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(cases);
    let config = Config {
        cases,
        max_shrink_iters: 2000,
        // At most one in ten may be of the kind that is refused, more of a few.
        max_global_rejects: cases / 10 + 10,
        failure_persistence: None,
        ..Config::default()
    };
    // The same inputs every time, so that a change can be told from luck;
    // `PROPTEST_SEED=random` explores.
    let mut runner = match std::env::var("PROPTEST_SEED").as_deref() {
        Ok("random") => TestRunner::new(config),
        _ => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    match runner.run(&strategy, check) {
        Ok(()) => {}
        // `check` says what the input was, as `source` has it.
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        Err(error) => panic!("{error}"),
    }
}

/// Layers as the tables of cases have them, so that a counterexample is run
/// again, or becomes a case, by pasting it.
pub fn source(layers: &[Layer]) -> String {
    let layers = layers.iter().map(|layer| {
        let entries = layer.iter().map(|entry| format!("        {entry:?},\n"));
        format!("    vec![\n{}    ],\n", entries.collect::<String>())
    });
    format!("vec![\n{}]", layers.collect::<String>())
}
