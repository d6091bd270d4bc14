//! Platforms: which one an image is for, and which of several a node takes.

use std::fmt;
use std::str::FromStr;

/// Operating system, architecture and variant, in Go's names and normalised:
/// `aarch64` is `arm64`, the variant `v8` of arm64 and `v1` of amd64 is empty,
/// and an arm without variant is `v7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Platform {
    /// For example `linux`; empty if the image does not say.
    pub os: String,
    /// For example `amd64`; empty if the image does not say.
    pub architecture: String,
    /// For example `v7`; empty for the architecture's baseline.
    pub variant: String,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// It has not two or three parts.
    #[error("platform {platform:?} is not os/architecture or os/architecture/variant")]
    Parts {
        /// The text, shortened.
        platform: String,
    },
    /// A part is empty, too long or has other characters than `[A-Za-z0-9_.-]`.
    #[error("platform {platform:?} has an invalid part {part:?}")]
    Part {
        /// The text, shortened.
        platform: String,
        /// The part, shortened.
        part: String,
    },
}

/// The most characters that one part of a platform may have.
const MAX_PART_CHARACTERS: usize = 64;

impl Platform {
    /// Normalises the three parts.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = architecture.to_ascii_lowercase();
        let mut variant = variant.to_ascii_lowercase();
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "i386" | "i486" | "i586" | "i686" | "x86" => "386",
            "aarch64" => "arm64",
            "armhf" => {
                variant = "v7".to_owned();
                "arm"
            }
            "armel" => {
                variant = "v6".to_owned();
                "arm"
            }
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        let variant = match (architecture, variant.as_str()) {
            ("amd64", "v1") | ("arm64", "v8" | "8" | "v8.0") => "",
            ("arm", "" | "7") => "v7",
            ("arm", "5") => "v5",
            ("arm", "6") => "v6",
            ("arm", "8") => "v8",
            (_, other) => other,
        };
        Platform {
            os,
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// The platform of this node. Variants above the baseline are for those who
    /// ask for them, as in container runtimes.
    pub fn host() -> Self {
        Platform::new(std::env::consts::OS, std::env::consts::ARCH, "")
    }

    /// Whether it says neither system nor architecture.
    pub fn is_unspecified(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }

    /// Whether it is `unknown/unknown`, which build tools give to what is not an image.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').take(4).collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => {
                return Err(PlatformError::Parts {
                    platform: super::printable(text),
                });
            }
        };
        for part in [os, architecture].into_iter().chain(variant) {
            let valid = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            if part.is_empty() || part.len() > MAX_PART_CHARACTERS || !part.chars().all(valid) {
                return Err(PlatformError::Part {
                    platform: super::printable(text),
                    part: super::printable(part),
                });
            }
        }
        Ok(Platform::new(os, architecture, variant.unwrap_or_default()))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |part: &str| {
            if part.is_empty() {
                "unknown".to_owned()
            } else {
                super::printable(part)
            }
        };
        write!(
            f,
            "{}/{}",
            or_unknown(&self.os),
            or_unknown(&self.architecture)
        )?;
        if !self.variant.is_empty() {
            write!(f, "/{}", super::printable(&self.variant))?;
        }
        Ok(())
    }
}

/// Which platform is wanted where an image has several.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum PlatformChoice {
    /// This node's, or an older one that it can run (386 on amd64, 32-bit arm on
    /// arm64). An image that exists for one platform only is taken as it is,
    /// for much of what is mounted is data.
    #[default]
    Host,
    /// This one or, of the same architecture, a lower variant; anything else
    /// is an error, also for an image with one platform only.
    Only(Platform),
}

impl PlatformChoice {
    /// The platform asked for.
    pub fn wanted(&self) -> Platform {
        match self {
            PlatformChoice::Host => Platform::host(),
            PlatformChoice::Only(platform) => platform.clone(),
        }
    }

    /// How well `offered` fits: 0 is best, none is not at all.
    pub fn rank(&self, offered: &Platform) -> Option<usize> {
        let wanted = self.wanted();
        let across = matches!(self, PlatformChoice::Host);
        acceptable(&wanted, across)
            .iter()
            .position(|platform| platform == offered)
    }

    /// Whether an image that exists for `offered` alone is taken.
    pub fn takes_single(&self, offered: &Platform) -> bool {
        *self == PlatformChoice::Host || self.rank(offered).is_some()
    }
}

impl fmt::Display for PlatformChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.wanted().fmt(f)
    }
}

/// What a machine that asks for `wanted` can use, best first; `across`: also
/// other architectures that it executes.
fn acceptable(wanted: &Platform, across: bool) -> Vec<Platform> {
    let of = |architecture: &str, variant: &str| Platform {
        os: wanted.os.clone(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    };
    // Variants are `v` and a number, on arm64 with an optional minor number.
    let level: Option<u32> = wanted
        .variant
        .strip_prefix('v')
        .and_then(|level| level.parse().ok());
    let mut platforms = vec![wanted.clone()];
    match (wanted.architecture.as_str(), level) {
        ("amd64", Some(level @ 2..=9)) => {
            platforms.extend(
                (2..level)
                    .rev()
                    .map(|lower| of("amd64", &format!("v{lower}"))),
            );
            platforms.push(of("amd64", ""));
        }
        ("arm", Some(level @ 6..=8)) => {
            platforms.extend(
                (5..level)
                    .rev()
                    .map(|lower| of("arm", &format!("v{lower}"))),
            );
        }
        ("arm64", _) if !wanted.variant.is_empty() => {
            platforms.extend(lower_arm64(&wanted.variant).map(|lower| of("arm64", &lower)));
        }
        _ => {}
    }
    if across {
        match wanted.architecture.as_str() {
            "amd64" => platforms.push(of("386", "")),
            "arm64" => platforms.extend((5..=8).rev().map(|lower| of("arm", &format!("v{lower}")))),
            _ => {}
        }
    }
    platforms
}

/// The variants below an arm64 variant (`v9.2`, `v8.4`), the next one first.
fn lower_arm64(variant: &str) -> impl Iterator<Item = String> {
    let parsed = variant.strip_prefix('v').and_then(|version| {
        let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let spell = |major: u32, minor: u32| match (major, minor) {
        (8, 0) => String::new(),
        (major, 0) => format!("v{major}"),
        (major, minor) => format!("v{major}.{minor}"),
    };
    let lower: Vec<String> = match parsed {
        // The architecture manual: v9.n has what v8.(n+5) has.
        Some((9, minor @ 0..=9)) => (0..minor)
            .rev()
            .map(|minor| spell(9, minor))
            .chain((0..=minor + 5).rev().map(|minor| spell(8, minor)))
            .collect(),
        Some((8, minor @ 1..=20)) => (0..minor).rev().map(|minor| spell(8, minor)).collect(),
        _ => Vec::new(),
    };
    lower.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> PlatformChoice {
        PlatformChoice::Only(text.parse().unwrap())
    }

    #[test]
    fn names_are_normalised() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("Linux/AArch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v8.2", "linux/arm64/v8.2"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("wasi/wasm", "wasi/wasm"),
        ] {
            let platform: Platform = text.parse().unwrap();
            assert_eq!(platform.to_string(), shown, "{text}");
            assert_eq!(platform.to_string().parse(), Ok(platform));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "linux",
            "arm64",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "linux//v7",
            "linux/arm64/",
            "linux/am d64",
            "linux/amd64\n",
            "linux/\u{0430}md64",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ranking_is_as_in_container_runtimes() {
        for (wanted, offered, rank) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v1", Some(0)),
            ("linux/amd64", "linux/amd64/v2", None),
            ("linux/amd64", "linux/386", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64/v3", "linux/amd64/v2", Some(1)),
            ("linux/amd64/v3", "linux/amd64", Some(2)),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm64", "linux/arm", None),
            ("linux/arm64/v8.1", "linux/arm64", Some(1)),
            ("linux/arm64/v9", "linux/arm64/v8.5", Some(1)),
            ("linux/arm64/v9", "linux/arm64", Some(6)),
            ("linux/arm64/v9.1", "linux/arm64/v9", Some(1)),
            ("linux/arm/v7", "linux/arm/v7", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v7", "linux/arm/v5", Some(2)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/riscv64", "linux/riscv64", Some(0)),
        ] {
            assert_eq!(
                only(wanted).rank(&offered.parse().unwrap()),
                rank,
                "{wanted} offered {offered}"
            );
        }
    }

    #[test]
    fn hosts_also_take_what_they_can_execute() {
        let amd64 = acceptable(&Platform::new("linux", "amd64", ""), true);
        let shown: Vec<String> = amd64.iter().map(Platform::to_string).collect();
        assert_eq!(shown, ["linux/amd64", "linux/386"]);
        let arm64 = acceptable(&Platform::new("linux", "arm64", ""), true);
        let shown: Vec<String> = arm64.iter().map(Platform::to_string).collect();
        let expected = [
            "linux/arm64",
            "linux/arm/v8",
            "linux/arm/v7",
            "linux/arm/v6",
            "linux/arm/v5",
        ];
        assert_eq!(shown, expected);
        assert_eq!(PlatformChoice::Host.rank(&Platform::host()), Some(0));
    }
}
