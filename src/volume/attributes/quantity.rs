//! Kubernetes quantities: `2Gi`, `1.5G`, `500M`, `1e9`.

/// Longest text that is read, in bytes.
const MAX_BYTES: usize = 64;
/// Most digits that count. With these and the largest suffix, arithmetic in
/// 128 bits cannot overflow: 10^19 × 10^18 < 2^127.
const MAX_DIGITS: usize = 19;
/// Largest decimal exponent that can still give a size; `E` is 10^18.
const MAX_EXPONENT: i32 = 18;
/// Largest size in bytes, the kernel's and Kubernetes' own limit.
const MAX_VALUE: u128 = i64::MAX as u128;

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It is not a number with an optional suffix.
    #[error("{text:?} is not a quantity; write for example 500Mi or 2Gi")]
    Malformed {
        /// The text, shortened.
        text: String,
    },
    /// It is zero or less.
    #[error("{text:?} is not more than zero")]
    NotPositive {
        /// The text.
        text: String,
    },
    /// It is more bytes than there can be, or has more digits than can matter.
    #[error("{text:?} is too large or has too many digits")]
    TooLarge {
        /// The text.
        text: String,
    },
}

/// What a suffix multiplies by.
enum Scale {
    /// 2 to this power.
    Binary(u32),
    /// 10 to this power.
    Decimal(i32),
}

/// The bytes that a quantity says; parts of a byte are rounded up, as
/// Kubernetes does.
pub fn bytes(text: &str) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed {
        text: super::shortened(text),
    };
    let too_large = || QuantityError::TooLarge {
        text: super::shortened(text),
    };
    if text.len() > MAX_BYTES {
        return Err(malformed());
    }
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return Err(malformed());
    }
    let scale = scale(suffix).ok_or_else(malformed)?;
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if is_negative || digits.is_empty() {
        return Err(QuantityError::NotPositive {
            text: text.to_owned(),
        });
    }
    if digits.len() > MAX_DIGITS {
        return Err(too_large());
    }
    let mantissa: u128 = digits.parse().map_err(|_| malformed())?;
    // At most as many as the text has bytes.
    let fraction_digits = fraction.len() as i32;
    let (mantissa, exponent) = match scale {
        Scale::Binary(power) => (mantissa << power, -fraction_digits),
        Scale::Decimal(exponent) => (mantissa, exponent.saturating_sub(fraction_digits)),
    };
    let value = match u32::try_from(exponent) {
        Ok(exponent) if exponent > MAX_EXPONENT as u32 => return Err(too_large()),
        Ok(exponent) => mantissa * 10u128.pow(exponent),
        // Where the divisor does not fit, what remains is a part of one byte.
        Err(_) => match 10u128.checked_pow(exponent.unsigned_abs()) {
            Some(divisor) => mantissa.div_ceil(divisor),
            None => 1,
        },
    };
    if value > MAX_VALUE {
        return Err(too_large());
    }
    u64::try_from(value).map_err(|_| too_large())
}

fn scale(suffix: &str) -> Option<Scale> {
    Some(match suffix {
        "Ki" => Scale::Binary(10),
        "Mi" => Scale::Binary(20),
        "Gi" => Scale::Binary(30),
        "Ti" => Scale::Binary(40),
        "Pi" => Scale::Binary(50),
        "Ei" => Scale::Binary(60),
        "n" => Scale::Decimal(-9),
        "u" => Scale::Decimal(-6),
        "m" => Scale::Decimal(-3),
        "" => Scale::Decimal(0),
        "k" => Scale::Decimal(3),
        "M" => Scale::Decimal(6),
        "G" => Scale::Decimal(9),
        "T" => Scale::Decimal(12),
        "P" => Scale::Decimal(15),
        "E" => Scale::Decimal(18),
        other => {
            let exponent = other.strip_prefix(['e', 'E'])?;
            // The integer parser also takes a plus sign, as quantities do.
            Scale::Decimal(exponent.parse::<i16>().ok()?.into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("1", 1),
            ("+1", 1),
            ("007", 7),
            ("2Gi", 2 << 30),
            ("500Mi", 500 << 20),
            ("500M", 500_000_000),
            ("1.5Gi", 3 << 29),
            ("1.5k", 1500),
            ("0.5", 1),
            (".5Ki", 512),
            ("5.", 5),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1e+3", 1000),
            ("1500e-3", 2),
            ("1e-40", 1),
            ("1E", 1_000_000_000_000_000_000),
            ("1m", 1),
            ("1001m", 2),
            ("100n", 1),
            ("1.000000000000000000000000000000", 1),
            ("7Ei", 7 << 60),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_quantities() {
        for text in [
            "", "-", "+", ".", "Gi", "1 Gi", "1gi", "1GI", "1GiB", "1KB", "1K", "1..2", "1.2.3",
            "1e", "1e1.5", "1ee3", "0x10", "1_000", "١", "1\n", "--1", "1e99999",
        ] {
            assert!(
                matches!(bytes(text), Err(QuantityError::Malformed { .. })),
                "{text:?}: {:?}",
                bytes(text)
            );
        }
    }

    #[test]
    fn sizes_have_bounds() {
        for text in ["0", "0Gi", "-1", "-0", "0.000", "-1Gi"] {
            assert!(
                matches!(bytes(text), Err(QuantityError::NotPositive { .. })),
                "{text}"
            );
        }
        for text in [
            "8Ei",
            "9223372036854775808",
            "10E",
            "1e19",
            "1e400",
            "12345678901234567890",
        ] {
            assert!(
                matches!(bytes(text), Err(QuantityError::TooLarge { .. })),
                "{text}"
            );
        }
    }
}
