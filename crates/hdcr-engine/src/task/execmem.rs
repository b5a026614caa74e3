//! Whether a program may map executable memory of its own (`execmem` of `SELinux`): a checkpoint makes its calls from such.
//!
//! The policy is asked through selinuxfs (`access`: contexts and class go in, permissions come out), as
//! `selinux_check_access(3)` does, and believed only where its answer makes sense. Where it is not asked, the mechanism finds out.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

/// Where selinuxfs is mounted.
const SELINUX: &str = "/sys/fs/selinux";
/// A permission that no program lacks that was ever started from another one.
const SURE: &str = "fork";
/// `AVD_FLAGS_PERMISSIVE` (security/selinux/include/security.h): the domain may do what the policy forbids.
const PERMISSIVE: u32 = 1;

/// Whether the policy forbids it to a process with this label.
pub(super) fn forbidden(label: &[u8]) -> bool {
    let read = |name: &str| fs::read_to_string(Path::new(SELINUX).join(name)).ok();
    denied(label, &read, &|question| ask(question).ok()) == Some(true)
}

fn ask(question: &str) -> io::Result<String> {
    let mut file = fs::File::options().read(true).write(true).open(Path::new(SELINUX).join("access"))?;
    file.write_all(question.as_bytes())?;
    let mut answer = [0; 128];
    let len = file.read(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..len).unwrap_or_default()).into_owned())
}

/// `None`: it cannot be told.
fn denied(label: &[u8], read: &dyn Fn(&str) -> Option<String>, ask: &dyn Fn(&str) -> Option<String>) -> Option<bool> {
    let number = |name: &str| read(name)?.trim().parse::<u32>().ok();
    if number("enforce")? == 0 {
        return Some(false);
    }
    let label = std::str::from_utf8(label).ok()?.trim_end_matches(['\0', '\n']);
    if label.is_empty() || label.contains(char::is_whitespace) {
        return None;
    }
    let bit = |name: &str| 1_u32.checked_shl(number(&format!("class/process/perms/{name}"))?.checked_sub(1)?);
    let (execmem, sure) = (bit("execmem")?, bit(SURE)?);
    let class = number("class/process/index")?;
    let answer = ask(&format!("{label} {label} {class} {execmem:x}"))?;
    // Allowed, decided, audit at success, audit at failure, number of the policy, flags.
    let words: Vec<&str> = answer.trim_end_matches(['\0', '\n']).split(' ').collect();
    let [allowed, decided, _, _, _, flags] = words[..] else { return None };
    let [allowed, decided, flags] = [allowed, decided, flags].map(|word| u32::from_str_radix(word, 16));
    let (allowed, decided, flags) = (allowed.ok()?, decided.ok()?, flags.ok()?);
    if decided & execmem == 0 || allowed & sure == 0 {
        return None;
    }
    Some(allowed & execmem == 0 && flags & PERMISSIVE == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(enforce: &str, label: &[u8], answer: &str, expected: Option<bool>) {
        let read = |name: &str| {
            let text = match name {
                "enforce" => enforce,
                "class/process/index" => "2",
                "class/process/perms/fork" => "1",
                "class/process/perms/execmem" => "26",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let ask = |question: &str| {
            assert_eq!(question, "u:r:t:s0 u:r:t:s0 2 2000000");
            Some(answer.to_owned())
        };
        assert_eq!(denied(label, &read, &ask), expected, "{enforce} {answer}");
    }

    #[test]
    fn the_policy_is_believed_where_its_answer_makes_sense() {
        let label = b"u:r:t:s0\0";
        check("1", label, "3ffffff ffffffff 0 ffffffff 1 0", Some(false));
        check("1", label, "1ffffff ffffffff 0 ffffffff 1 0", Some(true));
        check("1", label, "1ffffff ffffffff 0 ffffffff 1 1", Some(false));
        check("0", label, "1ffffff ffffffff 0 ffffffff 1 0", Some(false));
        check("1", label, "0 ffffffff 0 ffffffff 1 0", None);
        check("1", label, "1 1 0 ffffffff 1 0", None);
        check("1", label, "1ffffff ffffffff", None);
        check("1", label, "", None);
        check("", label, "", None);
        check("1", b"unconfined (x)\n", "", None);
        assert_eq!(denied(label, &|_| None, &|_| None), None);
    }
}
