//! The one Rust object for all kernels: `core` for the kernel, the crates that both sides share, the module's own half.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::check::Counts;
use crate::shell::{Shell, say};

/// Debian's compiler, which comes with the source of `core`; another one may come first in the path.
const RUSTC: &str = "/usr/bin/rustc";
const CORE: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
/// The name of the object.
pub(super) const NAME: &str = "hdcr_rust.o";

const TARGET: &str = "x86_64-unknown-none";

/// As the kernel's own objects are compiled: no red zone, no vector registers, thunks, room before and marks at functions.
const FLAGS: [&str; 17] = [
    "--target=x86_64-unknown-none",
    "-Copt-level=2",
    "-Cpanic=abort",
    "-Ccodegen-units=1",
    "-Cforce-unwind-tables=n",
    "-Crelocation-model=static",
    "-Ccode-model=kernel",
    "-Cno-redzone=y",
    "-Csymbol-mangling-version=v0",
    "-Cjump-tables=n",
    "-Zcf-protection=branch",
    "-Zretpoline-external-thunk=yes",
    "-Zindirect-branch-cs-prefix=yes",
    "-Zfunction-return=thunk-extern",
    "-Zpatchable-function-entry=16,16",
    "-Zplt=yes",
    "-Zdirect-access-external-data=yes",
];

/// What the C half calls.
const ENTRIES: [&str; 6] =
    ["hdcr_rs_open", "hdcr_rs_ioctl", "hdcr_rs_thaw", "hdcr_rs_release", "hdcr_rs_work", "hdcr_rs_build"];

/// The crates that both sides share, in the order in which they are built.
const SHARED: [&str; 2] = ["hdcr-abi", "hdcr-layout"];

/// What an object may be relocated by: nothing goes through a table of addresses.
const RELOCATIONS: [&str; 5] = ["R_X86_64_64", "R_X86_64_32", "R_X86_64_32S", "R_X86_64_PC32", "R_X86_64_PLT32"];

fn compile(shell: &Shell, arguments: &[&str]) -> Result<()> {
    let mut all = vec!["RUSTC_BOOTSTRAP=1", RUSTC];
    all.extend(FLAGS);
    all.extend(["-Zunstable-options", "-Zfunction-sections=n"]);
    all.extend(arguments);
    ensure!(shell.run("env", &all)?, "{RUSTC} failed");
    Ok(())
}

/// Builds the object and looks whether it is one that a kernel can take.
pub(super) fn build(shell: &Shell, folder: &Path) -> Result<PathBuf> {
    let sysroot = sysroot(shell, folder)?;
    let sysroot = format!("--sysroot={}", sysroot.display());
    let out = folder.display().to_string();
    let mut externs = Vec::new();
    for name in SHARED {
        let crate_name = name.replace('-', "_");
        let source = format!("crates/{name}/src/lib.rs");
        let kind = ["--crate-type", "rlib", "--edition=2024", "-Dwarnings"];
        compile(shell, &[&kind[..], &[&sysroot, "--crate-name", &crate_name, &source, "--out-dir", &out]].concat())?;
        externs.push(format!("--extern={crate_name}={out}/lib{crate_name}.rlib"));
    }
    externs.push(format!("--extern=xxhash_rust={}", check_sums(shell, &sysroot, &out)?));
    let kind = ["--crate-type", "staticlib", "--edition=2024", "-Clto=fat", "-Dwarnings"];
    let mut arguments = [&kind[..], &[&sysroot, "--crate-name", "hdcr", "--out-dir", &out]].concat();
    arguments.extend(externs.iter().map(String::as_str));
    arguments.push("kernel/src/lib.rs");
    compile(shell, &arguments)?;
    let (library, object) = (format!("{out}/libhdcr.a"), folder.join(NAME));
    let text = object.display().to_string();
    let mut link = vec!["-r", "--gc-sections", "-o", &text, &library];
    link.extend(ENTRIES.iter().flat_map(|entry| ["-u", entry]));
    ensure!(shell.run("ld", &link)?, "ld failed");
    check(shell, &text)?;
    Ok(object)
}

/// The crate of the check sums, as cargo has it.
fn check_sums(shell: &Shell, sysroot: &str, out: &str) -> Result<String> {
    let told = shell.output("cargo", &["metadata", "--format-version", "1", "--locked"])?;
    let told: serde_json::Value = serde_json::from_str(&told).context("cargo metadata")?;
    let packages = told.get("packages").and_then(|all| all.as_array()).into_iter().flatten();
    let found = packages.into_iter().find(|package| package.get("name").is_some_and(|name| name == "xxhash-rust"));
    let manifest = found.and_then(|package| package.get("manifest_path")?.as_str()).context("xxhash-rust")?;
    let source = Path::new(manifest).with_file_name("src/lib.rs").display().to_string();
    let kind = ["--crate-type", "rlib", "--edition=2018", "--cap-lints", "allow", "--cfg", "feature=\"xxh3\""];
    compile(shell, &[&kind[..], &[sysroot, "--crate-name", "xxhash_rust", &source, "--out-dir", out]].concat())?;
    Ok(format!("{out}/libxxhash_rust.rlib"))
}

/// `core` for the kernel, kept until the compiler or a flag changes.
fn sysroot(shell: &Shell, folder: &Path) -> Result<PathBuf> {
    let sysroot = folder.join("sysroot");
    let stamp = format!("{}{FLAGS:?}", shell.output(RUSTC, &["--version", "--verbose"])?);
    let stamped = folder.join("sysroot.stamp");
    if fs::read_to_string(&stamped).is_ok_and(|old| old == stamp) {
        return Ok(sysroot);
    }
    say("building core for the kernel, once")?;
    let out = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&out)?;
    let out = out.display().to_string();
    let quiet = ["--cap-lints", "allow", "--crate-type", "rlib"];
    let core = ["--edition=2024", "--crate-name", "core", "--cfg", "no_fp_fmt_parse", "--sysroot=/nonexistent", CORE];
    compile(shell, &[&quiet[..], &core, &["--out-dir", &out]].concat())?;
    let builtins = folder.join("compiler_builtins.rs");
    // The kernel has its own memcpy and its kin.
    fs::write(&builtins, "#![feature(compiler_builtins)]\n#![compiler_builtins]\n#![no_builtins]\n#![no_std]\n")?;
    let (builtins, root) = (builtins.display().to_string(), format!("--sysroot={}", sysroot.display()));
    let own = ["--edition=2021", "--crate-name", "compiler_builtins", &root, &builtins, "--out-dir", &out];
    compile(shell, &[&quiet[..], &own].concat())?;
    fs::write(&stamped, stamp)?;
    Ok(sysroot)
}

fn check(shell: &Shell, object: &str) -> Result<()> {
    let relocations = shell.output("readelf", &["--wide", "--relocs", object])?;
    let odd = relocations.lines().filter_map(|line| line.split_whitespace().nth(2));
    let odd = odd.filter(|word| word.starts_with("R_")).find(|word| !RELOCATIONS.contains(word));
    ensure!(odd.is_none(), "the object has relocations of the kind {odd:?}");
    let code = shell.output("objdump", &["--disassemble", "--no-show-raw-insn", object])?;
    ensure!(!code.is_empty(), "objdump shows nothing of {object}");
    let vector = code.lines().find(|line| line.contains("%xmm") || line.contains("%ymm"));
    ensure!(vector.is_none(), "the object uses vector registers: {vector:?}");
    let wanted = shell.output("nm", &["--undefined-only", "--format=just-symbols", object])?;
    let foreign = wanted.lines().find(|name| !is_expected(name));
    ensure!(foreign.is_none(), "the object wants {foreign:?}");
    Ok(())
}

fn is_expected(name: &str) -> bool {
    name.starts_with("hk_") || name.starts_with("mem") || name == "bcmp" || name.starts_with("__x86_")
}

/// The parts of the module that need no kernel, tested here.
pub(super) fn test_pure_parts(shell: &Shell, folder: &Path) -> Result<Counts> {
    let out = folder.join("host");
    fs::create_dir_all(&out)?;
    let out = out.to_str().context("a path of text")?;
    let abi = ["--edition=2024", "--crate-type", "rlib", "--crate-name", "hdcr_abi", "crates/hdcr-abi/src/lib.rs"];
    ensure!(shell.run("rustc", &[&abi[..], &["--out-dir", out]].concat())?, "hdcr-abi does not build");
    let external = format!("--extern=hdcr_abi={out}/libhdcr_abi.rlib");
    let program = format!("{out}/scope");
    let test =
        ["--edition=2024", "--test", "-Dwarnings", "-Adead_code", "kernel/src/scope.rs", &external, "-o", &program];
    ensure!(shell.run("rustc", &test)?, "the tests of scope.rs do not build");
    let mut counts = Counts::default();
    let success = shell.watch(&program, &["--quiet"], |line| {
        counts.add(crate::check::of_unit_tests(line).unwrap_or_default());
    })?;
    ensure!(success || counts.failed > 0, "the tests of scope.rs ended oddly");
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_object_may_want() {
        for name in ["hk_alloc", "memcpy", "bcmp", "__x86_return_thunk"] {
            assert!(is_expected(name), "{name}");
        }
        for name in ["_GLOBAL_OFFSET_TABLE_", "rust_eh_personality", "printk"] {
            assert!(!is_expected(name), "{name}");
        }
    }
}
