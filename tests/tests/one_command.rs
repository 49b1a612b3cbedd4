//! `hyperctl convert`, end to end: one command from a VM of a server to its qcow2, or to the cause.
use std::fs;
use std::process::Output;

use hyper2kvm_tests::exports::ExportSite;
use hyper2kvm_tests::images;
use serde_json::Value;

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn one_command_leads_to_the_qcow2() {
    let site = ExportSite::new("");
    let top = site.instance.top.path().to_path_buf();
    let raw = images::ext4(&top);
    let vmdk = images::vmdk(&raw, "streamOptimized", &top.join("source"));
    site.vm("web-01", &vmdk);

    let ask = ["convert", "--vm", "web-01", "--provider", "local"];
    let (code, _, error) = told(&site.hyperctl(&ask));
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("start it: systemctl start hypervisord.service"));

    let converter = site.instance.start();
    let exporter = site.start();
    let patient = [&ask[..], &["--timeout", "120"]].concat();
    let (code, out, error) = told(&site.hyperctl(&patient));
    assert_eq!(code, Some(0), "{out}{error}");
    let result = site.instance.link("web-01");
    let last = out.lines().last().unwrap();
    assert_eq!(last.trim(), result.to_str().unwrap(), "{out}");
    assert!(out.contains("web-01: done, exported in"), "{out}");
    images::judge(&raw, &result, "qcow2");

    // Either id shows the whole way.
    let (export, conversion) = (&site.records()[0], &site.instance.records()[0]);
    for id in [export.job_id, conversion.job_id] {
        let (code, out, error) =
            told(&site.hyperctl(&["status", "--json", "--job", &id.to_string()]));
        assert_eq!(code, Some(0), "{error}");
        let status: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status["step"], "done", "{out}");
        assert_eq!(status["export"]["job_id"], export.job_id.to_string());
        assert_eq!(
            status["conversion"]["job_id"],
            conversion.job_id.to_string()
        );
    }
    let (_, list, _) = told(&site.hyperctl(&["list"]));
    assert_eq!(list.lines().count(), 2, "{list}");
    let (_, logs, _) = told(&site.hyperctl(&["logs", "--vm", "web-01"]));
    assert!(logs.contains("handing it to instance default"), "{logs}");
    assert!(logs.lines().count() > export.log.len(), "{logs}");
    exporter.stop();
    converter.stop();
}

#[test]
fn what_fails_on_the_way_is_told() {
    let site = ExportSite::new("");
    let top = site.instance.top.path().to_path_buf();
    let raw = images::ext4(&top);
    let vmdk = images::vmdk(&raw, "streamOptimized", &top.join("source"));
    let mut bytes = fs::read(vmdk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xa5);
    let damaged = top.join("damaged.vmdk");
    fs::write(&damaged, bytes).unwrap();
    site.vm("damaged", &damaged);
    let converter = site.instance.start();
    let exporter = site.start();
    for (vm, stage, cause) in [
        (
            "nowhere",
            "export failed",
            "no disks of nowhere lie beneath",
        ),
        ("damaged", "conversion failed", "damaged.vmdk"),
    ] {
        let ask = [
            "convert",
            "--vm",
            vm,
            "--vcenter",
            "store",
            "--timeout",
            "120",
        ];
        let (code, out, error) = told(&site.hyperctl(&ask));
        assert_eq!(code, Some(1), "{vm}: {out}{error}");
        assert!(out.contains(stage) && out.contains(cause), "{vm}: {out}");
    }
    exporter.stop();
    converter.stop();
}
