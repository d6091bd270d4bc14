//! Errors with their causes, on one line.

use std::error::Error;
use std::fmt;

/// Shows an error and its causes as `message: cause: cause`. Each error's own
/// text says only its own level, so this is the one place where they are joined.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The first error of a type among an error and its causes, also one that an
/// [`io::Error`](std::io::Error) carries.
pub fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // Its own source is that of what it carries, which would be passed over.
        let carried = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to stage {image}")]
    struct Outer {
        image: &'static str,
        source: Middle,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the blob")]
    struct Middle(#[source] std::io::Error);

    #[test]
    fn every_level_is_said_once() {
        let error = Outer {
            image: "app",
            source: Middle(std::io::Error::other("disk on fire")),
        };
        assert_eq!(
            Chain(&error).to_string(),
            "failed to stage app: cannot read the blob: disk on fire"
        );
        assert_eq!(Chain(&error.source.0).to_string(), "disk on fire");
    }

    #[test]
    fn an_error_is_found_behind_others() {
        let carried = Middle(std::io::Error::other(std::fmt::Error));
        let error = Outer {
            image: "app",
            source: carried,
        };
        assert!(find::<Middle>(&error).is_some());
        assert!(find::<std::fmt::Error>(&error).is_some());
        assert!(find::<std::num::ParseIntError>(&error).is_none());
    }
}
