//! Passwords and tokens: wiped when they are dropped, and shown by nothing.

use std::fmt;
use zeroize::Zeroizing;

/// A password or token.
///
/// **Invariant:** no log line, error, record or metric has it: there is no
/// `Display`, no `Serialize`, and `Debug` shows nothing of it. Our copy of the
/// bytes is overwritten on drop. What a library copies on its way to the wire is
/// beyond that.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over; whoever had it has it no more.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }

    /// The text itself, for the request that it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_line_has_nothing_of_it() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret))
                .matches("hunter")
                .count(),
            0
        );
        assert_eq!(secret.expose(), "hunter2");
    }
}
