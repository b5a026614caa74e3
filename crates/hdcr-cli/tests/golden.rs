//! Images of the past, `trials/golden`: their manifests, records and pages are read by this version, without any right.
//! That they can be restored is shown by `trials golden`.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use hdcr_image::{ImageReader, ImageWriter, Options};
use hdcr_store::{Durability, FileSink, open_path};
use serde_json::Value;

/// Programs of the first images, with the names of their processes and a record of each that only they have.
const FIRST: [(&str, &[&str], &str); 3] = [
    ("alone-0.1.0", &["golden one"], "eventfd"),
    ("threads-0.1.0", &["golden"], "rseq: (at: "),
    ("tree-0.1.0", &["golden", "golden", "golden child", "golden orphan"], "socket"),
];

fn images() -> Vec<PathBuf> {
    files("hdcr")
}

fn files(extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trials/golden");
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut images: Vec<PathBuf> =
        all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    images.sort();
    images
}

/// What a command says about an image, as JSON.
fn said(words: &[&str], image: &Path) -> Value {
    let out = Command::new(env!("CARGO_BIN_EXE_hdcr"))
        .args(words)
        .arg(image)
        .arg("--json")
        .env_clear()
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{words:?} {}: {text}", image.display());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn images_of_the_past_are_read_and_whole() {
    let images = images();
    for (name, processes, kind) in FIRST {
        let image = images.iter().find(|image| image.file_stem().is_some_and(|stem| stem == name)).unwrap();
        let shown = said(&["show", "--records"], image);
        let named = shown["processes_named"].as_array().unwrap();
        let mut found: Vec<&str> = named.iter().map(|process| process["name"].as_str().unwrap()).collect();
        found.sort_unstable();
        assert_eq!(found, processes, "{name}");
        assert!(shown["records"].to_string().contains(kind), "{name} has no {kind}");
    }
    for image in images {
        said(&["verify"], &image);
        let shown = said(&["show", "--records"], &image);
        let (frames, records) = (shown["frames"].as_u64().unwrap(), shown["records"].as_array().unwrap());
        // The frames of the page index are no records.
        assert!(!records.is_empty() && records.len() as u64 <= frames, "{}", image.display());
        for record in records {
            let text = record["text"].as_str().unwrap();
            let odd = ["unknown", "cannot be", "is not known", "corrupt"];
            assert!(!odd.iter().any(|words| text.contains(words)), "{}: {record}", image.display());
        }
    }
}

/// Images that share files, in the store of a job.
#[test]
fn images_of_the_past_that_share_files_are_read_and_whole() {
    let tars = files("tar");
    assert!(tars.iter().any(|tar| tar.ends_with("chain-0.1.0.tar")));
    for tar in tars {
        let store = tempfile::tempdir().unwrap();
        let jobs = store.path().join("jobs");
        std::fs::create_dir(&jobs).unwrap();
        let tar = tar.canonicalize().unwrap();
        let status = Command::new("tar").arg("--extract").arg("--file").arg(&tar).current_dir(&jobs).status().unwrap();
        assert!(status.success());
        let mut bases = Vec::new();
        for link in std::fs::read_dir(jobs.join("golden")).unwrap() {
            let link = link.unwrap().path();
            said(&["verify"], &link);
            bases.extend(said(&["show"], &link)["base"].as_str().map(str::to_owned));
        }
        assert_eq!(bases.len(), 3, "{} in {}", bases.len(), tar.display());
    }
}

/// Every sum of such an image is right, and yet it cannot be restored.
#[test]
fn an_image_with_a_page_in_no_mapping_is_not_whole() {
    let whole = images().into_iter().find(|image| image.ends_with("alone-0.1.0.hdcr")).unwrap();
    let source = open_path(&whole).unwrap();
    let reader = ImageReader::open(source.as_ref()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for stray in [false, true] {
        let image = folder.path().join(format!("{stray}.hdcr"));
        let sink = FileSink::create(&image, Durability::None).unwrap();
        let mut writer = ImageWriter::new(Box::new(sink), Options::default()).unwrap();
        for frame in reader.frames() {
            writer.frame(frame.tag, frame.version, frame.id, frame.body).unwrap();
        }
        let mut bytes = Vec::new();
        for space in reader.spaces() {
            for run in reader.runs(space) {
                reader.read_run(run, &mut bytes).unwrap();
                bytes.resize(usize::try_from(run.size()).unwrap(), 0);
                writer.pages(space, run.address(), &bytes).unwrap();
            }
            if stray {
                writer.pages(space, 0x1000, &[1; 4096]).unwrap();
            }
        }
        writer.finish(reader.manifest().facts.clone()).unwrap();
        let said = Command::new(env!("CARGO_BIN_EXE_hdcr")).arg("verify").arg(&image).env_clear().output().unwrap();
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.success(), !stray, "{text}");
        assert_eq!(text.contains("pages at 0x1000 lie in no mapping"), stray, "{text}");
    }
}
