//! Names of branches in what the kernel says of a mount. Pure.

use crate::layer::store::BranchId;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Digits of a branch's name.
const DIGITS: usize = 32;

/// All names of branches in a text, each with the path that ends in it as far as
/// that can be told. Paths may have anything in front, be escaped or shortened; a
/// name, a run of just so many hex digits, is whole or not there, and nothing else
/// is taken for one but by a chance of 2^-128.
pub(super) fn branches_in(text: &[u8]) -> Vec<(BranchId, PathBuf)> {
    let mut found = Vec::new();
    let mut at = 0;
    for run in text.split(|byte| !byte.is_ascii_hexdigit()) {
        let end = at + run.len();
        if run.len() == DIGITS
            && let Ok(name) = String::from_utf8(run.to_vec())
            && let Ok(id) = BranchId::try_from(name)
        {
            // What the path of a store consists of.
            let is_fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/".contains(byte);
            let front = text[..at].iter().rev().take_while(|byte| is_fit(byte));
            let path = &text[at - front.count()..end];
            found.push((id, PathBuf::from(OsStr::from_bytes(path))));
        }
        at = end + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_however_the_kernel_writes_the_path() {
        let (a, b) = (BranchId::of("a"), BranchId::of("b"));
        let found = |text: &str| -> Vec<(BranchId, String)> {
            let paths = branches_in(text.as_bytes()).into_iter();
            paths
                .map(|(id, path)| (id, path.display().to_string()))
                .collect()
        };
        let path = |id: &BranchId| format!("/s/diff/{id}");
        for text in [
            format!("rw,lowerdir+=/s/diff/{a},lowerdir+=/s/diff/{b},upperdir=/x"),
            format!("rw,lowerdir=/s/diff/{a}:/s/diff/{b}"),
            format!("/s/diff/{a}=ro+wh\n/s/diff/{b}"),
        ] {
            let both = [(a.clone(), path(&a)), (b.clone(), path(&b))];
            assert_eq!(found(&text), both, "{text}");
        }
        let escaped = format!("/mnt/disk\\040one/s/diff/{a}//deleted");
        assert_eq!(found(&escaped), [(a.clone(), format!("040one/s/diff/{a}"))]);
        // Of a volume, of a digest, of nothing.
        for text in [
            format!("/s/diff/{}", &a.as_str()[1..]),
            format!("/s/diff/{a}{b}"),
            a.as_str()
                .to_uppercase()
                .replace(|c: char| c.is_ascii_digit(), "A"),
            String::new(),
        ] {
            assert_eq!(found(&text), [], "{text}");
        }
    }
}
