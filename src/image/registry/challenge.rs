//! `WWW-Authenticate`: how a server says what it wants to be shown. Pure.
//!
//! The grammar is RFC 7235's: several challenges in one header or in several,
//! divided by commas that also divide the parameters of one challenge. What is
//! malformed ends the reading of its header; what came before it counts.

/// The longest header value that is read, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// The most challenges of one answer.
const MAX_CHALLENGES: usize = 16;
/// The most parameters of one challenge.
const MAX_PARAMETERS: usize = 32;

/// One way in which a server lets itself be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case: `basic`, `bearer`, or something else.
    pub(super) scheme: String,
    /// Their names are in lower case. Of two of the same name, the first.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter by its name in lower case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        let found = parameters.find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// All challenges in the values of the headers of that name, in order.
pub(super) fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in values {
        if value.len() <= MAX_HEADER_BYTES {
            Parser { rest: value }.challenges(&mut challenges);
        }
    }
    challenges
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    fn challenges(&mut self, challenges: &mut Vec<Challenge>) {
        while challenges.len() < MAX_CHALLENGES {
            self.skip(b" \t,");
            let scheme = self.token();
            if scheme.is_empty() {
                return;
            }
            let mut challenge = Challenge {
                scheme: scheme.to_ascii_lowercase(),
                parameters: Vec::new(),
            };
            let whole = self.parameters(&mut challenge);
            challenges.push(challenge);
            if whole.is_none() {
                return;
            }
        }
    }

    /// Reads up to the next challenge; none where nothing sensible follows.
    fn parameters(&mut self, challenge: &mut Challenge) -> Option<()> {
        if self
            .rest
            .first()
            .is_some_and(|byte| !b" \t,".contains(byte))
        {
            return None;
        }
        self.skip(b" \t");
        if self.skip_token68() {
            return Some(());
        }
        loop {
            let here = self.rest;
            self.skip(b" \t,");
            let before_name = self.rest;
            let name = self.token();
            if name.is_empty() {
                return self.rest.is_empty().then_some(());
            }
            self.skip(b" \t");
            let Some(rest) = self.rest.strip_prefix(b"=") else {
                // The name of the next challenge, which a comma must precede.
                self.rest = before_name;
                let divided = here[..here.len() - before_name.len()].contains(&b',');
                return divided.then_some(());
            };
            self.rest = rest;
            self.skip(b" \t");
            let value = match self.rest.first() {
                Some(b'"') => self.quoted()?,
                _ => Some(self.token())
                    .filter(|value| !value.is_empty())?
                    .to_owned(),
            };
            let name = name.to_ascii_lowercase();
            if challenge.parameters.len() < MAX_PARAMETERS && challenge.get(&name).is_none() {
                challenge.parameters.push((name, value));
            }
            self.skip(b" \t");
            if self.rest.first().is_some_and(|byte| *byte != b',') {
                return None;
            }
        }
    }

    fn skip(&mut self, bytes: &[u8]) {
        let end = self.rest.iter().position(|byte| !bytes.contains(byte));
        self.rest = &self.rest[end.unwrap_or(self.rest.len())..];
    }

    fn token(&mut self) -> &'a str {
        let is_token =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let end = self.rest.iter().position(|byte| !is_token(byte));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        // Only ASCII is left in it.
        std::str::from_utf8(token).unwrap_or_default()
    }

    /// Some schemes have one value without a name, as `Negotiate YII=`.
    fn skip_token68(&mut self) -> bool {
        let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
        let inner = self.rest.iter().position(|byte| !is_inner(byte));
        let inner = inner.unwrap_or(self.rest.len());
        let padding = self.rest[inner..]
            .iter()
            .take_while(|byte| **byte == b'=')
            .count();
        let behind = &self.rest[inner + padding..];
        let mut blanks = Parser { rest: behind };
        blanks.skip(b" \t");
        let ends = matches!(blanks.rest.first(), None | Some(b','));
        // `realm=` followed by nothing reads as one too, and means nothing either.
        if inner > 0 && ends {
            self.rest = blanks.rest;
            return true;
        }
        false
    }

    /// A quoted string; none if it does not end. Escapes are undone.
    fn quoted(&mut self) -> Option<String> {
        let mut value = Vec::new();
        let mut bytes = self.rest.iter().enumerate().skip(1);
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.rest = &self.rest[at + 1..];
                    // Other encodings than UTF-8 are of the time before it.
                    return Some(String::from_utf8_lossy(&value).into_owned());
                }
                b'\\' => value.push(*bytes.next()?.1),
                other => value.push(*other),
            }
        }
        None
    }
}

/// What must hold for any bytes: reading ends without a panic and inside the
/// bounds, and what was read is read again from its plainest form.
///
/// # Panics
/// If it does not hold; this is the body of a fuzz target.
#[cfg(any(test, feature = "testing"))]
pub fn check(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n');
    let challenges = parse(lines);
    assert!(challenges.len() <= MAX_CHALLENGES);
    let mut plain = Vec::new();
    for challenge in &challenges {
        assert!(!challenge.scheme.is_empty());
        assert!(challenge.parameters.len() <= MAX_PARAMETERS);
        let mut line = challenge.scheme.clone();
        for (number, (name, value)) in challenge.parameters.iter().enumerate() {
            assert_eq!(challenge.get(name), Some(value.as_str()));
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            let divider = if number == 0 { " " } else { ", " };
            line.push_str(&format!("{divider}{name}=\"{value}\""));
        }
        plain.push(line);
    }
    let fits = plain.iter().all(|line| line.len() <= MAX_HEADER_BYTES);
    if fits {
        assert_eq!(parse(plain.iter().map(|line| line.as_bytes())), challenges);
    }
}

/// Headers of registries, to start mutations from.
#[cfg(any(test, feature = "testing"))]
pub fn seeds() -> Vec<Vec<u8>> {
    [
        r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
        r#"Basic realm="a \"b\" \\c", Bearer realm=x , Digest qop="auth,auth-int",nonce=1"#,
        "Negotiate YII=, Basic realm=\"x\"",
        "Negotiate\nbasic\tREALM = \"\"",
        ",, Newauth realm=\"apps\", type=1, title=\"Login to \\\"apps\\\"\", Basic realm=\"simple\"",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scheme name=value name=value; scheme …`
    fn shown(values: &[&str]) -> String {
        let challenges = parse(values.iter().map(|value| value.as_bytes()));
        let shown = challenges.iter().map(|challenge| {
            let parameters = challenge.parameters.iter();
            let parameters = parameters.map(|(name, value)| format!(" {name}={value}"));
            format!("{}{}", challenge.scheme, parameters.collect::<String>())
        });
        shown.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn challenges_are_read_as_the_grammar_has_them() {
        for (values, expected) in [
            (&[][..], ""),
            (&[""], ""),
            (&["Basic"], "basic"),
            (&["Basic realm=\"x\""], "basic realm=x"),
            (&["BASIC REALM=x"], "basic realm=x"),
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#],
                "bearer realm=https://a/t service=s scope=repository:a/b:pull,push",
            ),
            // The example of RFC 7235, section 4.1.
            (
                &[
                    r#"Newauth realm="apps", type=1, title="Login to \"apps\"", Basic realm="simple""#,
                ],
                r#"newauth realm=apps type=1 title=Login to "apps"; basic realm=simple"#,
            ),
            (
                &["Basic realm=a", "Bearer realm=b"],
                "basic realm=a; bearer realm=b",
            ),
            (&["Negotiate, Basic realm=a"], "negotiate; basic realm=a"),
            (
                &["Negotiate YII=, Basic realm=a"],
                "negotiate; basic realm=a",
            ),
            (
                &["Negotiate a/b+c==,Basic realm=a"],
                "negotiate; basic realm=a",
            ),
            // Empty elements and blanks around the equals sign are allowed.
            (
                &[", ,Basic realm = \"a\" ,, charset=UTF-8,"],
                "basic realm=a charset=UTF-8",
            ),
            (&["Bearer realm=\"\""], "bearer realm="),
            (&["Basic realm=a, realm=b"], "basic realm=a"),
            (
                &["Basic realm=\"a,b=c, Bearer\""],
                "basic realm=a,b=c, Bearer",
            ),
            // What is malformed ends its header.
            (
                &["Basic realm=\"a", "Bearer realm=b"],
                "basic; bearer realm=b",
            ),
            (&["Basic realm=\"a\" x, Bearer realm=b"], "basic realm=a"),
            (&["Basic @ realm=a", "Bearer"], "basic; bearer"),
            (&["=, Basic"], ""),
            (&["Basic\u{e4}"], "basic"),
            (&["Basic realm=\"\\"], "basic"),
        ] {
            assert_eq!(shown(values), expected, "{values:?}");
        }
    }

    #[test]
    fn headers_are_bounded() {
        let long = format!("Basic realm=\"{}\"", "x".repeat(MAX_HEADER_BYTES));
        assert_eq!(shown(&[&long]), "");
        let many = "Basic, ".repeat(100);
        assert_eq!(parse([many.as_bytes()]).len(), MAX_CHALLENGES);
        let names: String = (0..100).map(|n| format!("p{n}=1,")).collect();
        let parsed = parse([format!("Basic {names}").as_bytes()]);
        assert_eq!(parsed[0].parameters.len(), MAX_PARAMETERS);
    }

    #[test]
    fn seeds_keep_to_the_check() {
        for seed in seeds() {
            check(&seed);
        }
    }
}
