//! What the benchmarks share.
#![allow(dead_code, reason = "each benchmark uses another part")]
#![allow(unreachable_pub, reason = "shared by several crates, public in none")]

pub mod aims;
pub mod image;
pub mod measure;
pub mod peers;

/// Anything that goes wrong ends a benchmark.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{name} is {text:?}, which is no number").into()),
        Err(_) => Ok(default),
    }
}

/// A message with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
