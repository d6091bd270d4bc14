//! YAML, as Kubernetes' configuration files are written; JSON is YAML too.

use serde::de::DeserializeOwned;

/// Largest file that is read, in bytes: far more than a person writes.
pub const MAX_BYTES: usize = 1 << 20;

/// Why a text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// It is longer than anything that is believed.
    #[error("it has {bytes} bytes, more than {MAX_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// It is no YAML, or not of this kind. What stands there is not shown, for it
    /// can be a secret: a value of an environment variable, for example.
    #[error("line {line}, column {column}: no YAML, or not what belongs there")]
    Malformed {
        /// Where, beginning with 1; 0 where that is not known.
        line: u64,
        /// Where in the line, beginning with 1.
        column: u64,
    },
}

/// Reads one document. Aliases, nesting and the number of values are bounded.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, YamlError> {
    if bytes.len() > MAX_BYTES {
        return Err(YamlError::TooLarge { bytes: bytes.len() });
    }
    serde_saphyr::from_slice(bytes).map_err(|error| {
        let at = error.location();
        YamlError::Malformed {
            line: at.map_or(0, |at| at.line()),
            column: at.map_or(0, |at| at.column()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Map = BTreeMap<String, Vec<u64>>;

    #[test]
    fn yaml_and_json_are_read() {
        let expected = Map::from([("a".to_owned(), vec![1, 2])]);
        for text in ["a: [1, 2]", "---\na:\n- 1\n- 2\n", r#"{"a": [1, 2]}"#] {
            assert_eq!(read::<Map>(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_error_says_where_and_not_what() {
        let error = read::<Map>(b"b: [1]\na: [hunter2]\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2, column 5: no YAML, or not what belongs there"
        );
        assert!(!format!("{error:?}").contains("hunter"));
        assert!(read::<Map>(b"a: [1\n").is_err());
        assert!(read::<Map>(b"\xff").is_err());
        assert!(read::<Map>(b"a: [1]\na: [2]\n").is_err(), "twice");
        let long = vec![b' '; MAX_BYTES + 1];
        assert_eq!(
            read::<Map>(&long),
            Err(YamlError::TooLarge {
                bytes: MAX_BYTES + 1
            })
        );
    }

    #[test]
    fn a_laugh_is_short() {
        let mut text = String::from("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
        for (name, of) in [
            ("b", "a"),
            ("c", "b"),
            ("d", "c"),
            ("e", "d"),
            ("f", "e"),
            ("g", "f"),
        ] {
            let list = vec![format!("*{of}"); 10].join(", ");
            text.push_str(&format!("{name}: &{name} [{list}]\n"));
        }
        assert!(read::<BTreeMap<String, serde_json::Value>>(text.as_bytes()).is_err());
    }
}
