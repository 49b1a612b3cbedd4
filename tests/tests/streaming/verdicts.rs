//! Streamed or not, the verdict is the same: the bytes of the image, or the error.
use std::fs;
use std::time::Duration;

use converter::convert::Plan;
use converter::error::ErrorKind;
use hyper2kvm_tests::images;
use queue::instance::config::{Compress, OutFormat};

use super::growing::{Bench, Last, Outcome, assert_same};
use super::samples;

fn plan(compress: Compress) -> Plan {
    Plan {
        compress,
        ..Plan::default()
    }
}

fn whole() -> Last {
    Last::Whole(None)
}

fn digest(outcome: &Outcome) -> Option<String> {
    let converted = outcome.result.as_ref().ok()?;
    Some(converted.disks[0].digest.clone().unwrap())
}

fn kind(outcome: &Outcome) -> Option<ErrorKind> {
    outcome.result.as_ref().err().map(|error| error.kind)
}

#[test]
fn the_bytes_are_those_of_the_whole_file() {
    let guest = samples::guest();
    let raw = tempfile::NamedTempFile::new().unwrap();
    fs::write(raw.path(), &guest).unwrap();
    let place = tempfile::tempdir().unwrap();
    let of_qemu = images::vmdk(raw.path(), "streamOptimized", place.path());
    let forms = [samples::stream(), fs::read(of_qemu).unwrap()];
    for compress in [Compress::None, Compress::Zlib, Compress::Zstd] {
        let mut bench = Bench::new(plan(compress));
        // None of them has to come whole: who does nothing is behind, for want of a processor.
        bench.idle_looks = u32::MAX;
        for bytes in &forms {
            let streamed = bench.streams(bytes, whole());
            let converted = streamed.result.as_ref().unwrap();
            assert!(streamed.was_streamed(), "{}", streamed.told);
            // All but what the last pieces brought was done before the end came.
            let early = streamed.early_bytes as f64 / bytes.len() as f64;
            assert!(early > 0.6, "{early}");
            assert_eq!(converted.disks[0].source_bytes, bytes.len() as u64);
            assert_eq!(converted.disks[0].source_format, "vmdk (streamOptimized)");
            let at_once = bench.converts(bytes);
            assert_same(&streamed.image, &at_once.image);
            assert_eq!(digest(&streamed), digest(&at_once));
            images::judge(raw.path(), &streamed.image, "qcow2");
            let transplanted = |outcome: &Outcome| {
                let converted = outcome.result.as_ref().unwrap();
                converted.metadata.disks[0].grains_transplanted
            };
            assert_eq!(transplanted(&streamed), transplanted(&at_once));
        }
    }
}

#[test]
fn a_raw_target_and_many_threads() {
    let bench = Bench::new(Plan {
        format: OutFormat::Raw,
        threads: 8,
        ..Plan::default()
    });
    let streamed = bench.streams(&samples::stream(), whole());
    streamed.result.as_ref().unwrap();
    let image = streamed.image.with_extension("raw");
    assert!(streamed.was_streamed(), "{}", streamed.told);
    assert!(fs::read(image).unwrap() == samples::guest());
}

#[test]
fn what_is_irregular_is_converted_by_its_tables() {
    let bench = Bench::new(plan(Compress::Zlib));
    for (what, bytes) in samples::irregular() {
        let streamed = bench.streams(&bytes, whole());
        let at_once = bench.converts(&bytes);
        assert!(
            digest(&at_once).is_some(),
            "{what}: {:?}",
            at_once.result.err()
        );
        assert!(!streamed.was_streamed(), "{what}: {}", streamed.told);
        assert_eq!(digest(&streamed), digest(&at_once), "{what}");
        assert_same(&streamed.image, &at_once.image);
    }
}

#[test]
fn what_is_corrupt_is_refused() {
    let bench = Bench::new(plan(Compress::None));
    for (what, bytes) in samples::corrupt() {
        let streamed = bench.streams(&bytes, whole());
        assert_eq!(kind(&streamed), Some(ErrorKind::Corrupt), "{what}");
        assert_eq!(
            kind(&bench.converts(&bytes)),
            Some(ErrorKind::Corrupt),
            "{what}"
        );
    }
}

#[test]
fn cut_anywhere_the_verdict_is_that_of_the_file() {
    let bytes = samples::irregular().remove(3).1;
    let bench = Bench::new(plan(Compress::None));
    let cuts = (0..bytes.len()).step_by(9_973);
    let tail = bytes.len() - 3_000..=bytes.len();
    for cut in cuts.chain(tail.step_by(211)) {
        let (streamed, at_once) = (
            bench.streams(&bytes[..cut], whole()),
            bench.converts(&bytes[..cut]),
        );
        assert_eq!(kind(&streamed), kind(&at_once), "cut at {cut}");
        assert_eq!(digest(&streamed), digest(&at_once), "cut at {cut}");
    }
}

#[test]
fn what_is_no_stream_is_waited_for() {
    let guest = images::noise(3, 3 << 20);
    let raw = tempfile::NamedTempFile::new().unwrap();
    fs::write(raw.path(), &guest).unwrap();
    let place = tempfile::tempdir().unwrap();
    let sparse = images::vmdk(raw.path(), "monolithicSparse", place.path());
    let bench = Bench::new(Plan::default());
    for (format, bytes) in [("vmdk", fs::read(sparse).unwrap()), ("raw", guest)] {
        // By the manifest it may be called what it is not.
        let streamed = bench.streams_as(format, &bytes, whole());
        assert!(
            streamed.told.contains("has to be whole first"),
            "{}",
            streamed.told
        );
        streamed.result.as_ref().unwrap();
        images::judge(raw.path(), &streamed.image, "qcow2");
    }
}

#[test]
fn checksums_are_of_all_that_came() {
    let bytes = samples::stream();
    let blake3 = format!("blake3:{}", blake3::hash(&bytes).to_hex());
    let place = tempfile::NamedTempFile::new().unwrap();
    fs::write(place.path(), &bytes).unwrap();
    let sum = images::run("coreutils", "sha256sum", &[images::text(place.path())]);
    let sum = String::from_utf8(sum.stdout).unwrap();
    let sha256 = format!("sha256:{}", sum.split(' ').next().unwrap());
    let bench = Bench::new(Plan::default());
    let wrong = |right: &str| right.replace(&right[20..24], "beef");
    for right in [&blake3, &sha256] {
        let streamed = bench.streams(&bytes, Last::Whole(Some(right.clone())));
        streamed.result.as_ref().unwrap();
        assert!(streamed.was_streamed());
        let streamed = bench.streams(&bytes, Last::Whole(Some(wrong(right))));
        let error = streamed.result.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.context.contains("vm.vmdk.end says"), "{error}");
    }
    let nonsense = bench.streams(&bytes, Last::Whole(Some("crc32:0".to_owned())));
    assert_eq!(kind(&nonsense), Some(ErrorKind::Invalid));
    // Also of what has to be converted again.
    let (_, irregular) = samples::irregular().remove(0);
    let streamed = bench.streams(&irregular, Last::Whole(Some(blake3)));
    assert_eq!(kind(&streamed), Some(ErrorKind::Corrupt));
}

#[test]
fn aborted_it_says_why() {
    let bytes = samples::stream();
    let bench = Bench::new(Plan::default());
    for cut in [0, 100, 70_000, bytes.len() / 2, bytes.len()] {
        let streamed = bench.streams(&bytes[..cut], Last::Aborted("the lease was lost"));
        let error = streamed.result.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");
        assert!(
            error
                .context
                .contains("vm.vmdk was aborted: the lease was lost"),
            "{error}"
        );
    }
}

#[test]
fn a_dead_producer_is_not_waited_for_without_end() {
    let bytes = samples::stream();
    let mut bench = Bench::new(Plan::default());
    bench.patience = Duration::from_millis(300);
    for cut in [0, 70_000, bytes.len() / 2, bytes.len()] {
        let streamed = bench.streams(&bytes[..cut], Last::Silence);
        let error = streamed.result.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
        assert!(
            error.context.contains(&format!("at {cut} bytes")),
            "{error}"
        );
        assert!(error.remedy.is_some());
    }
}
