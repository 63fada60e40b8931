//! `veth bench`: figures of every path and workload, of what others made, and what may be said by them. No test here looks
//! at a time.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use veth_tests::{
    Lab,
    foreign::{Foreign, Place, Verdict},
    need,
    topology::Declared,
};

const LAN: &str = "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n";

/// How long a benchmark may take, many times as long as on a machine of its own.
const PATIENCE: Duration = Duration::from_mins(5);

/// Runs a benchmark that must succeed, and returns what it printed.
fn bench(lab: &Lab, args: &[&str]) -> String {
    let args = [&["bench"], args].concat();
    let finished = lab.start(&args, &[]).finish_within(PATIENCE);
    assert!(finished.status.success(), "veth {args:?}: {finished:?}");
    finished.out
}

/// Runs a short benchmark, and returns its report.
fn report(lab: &Lab, args: &[&str]) -> Value {
    let args = [&["--time", "5ms", "--json", "-"], args].concat();
    serde_json::from_str(&bench(lab, &args)).unwrap()
}

/// Every row of a report, with its workload.
fn rows(report: &Value) -> Vec<(String, &Value)> {
    let cells = report["results"].as_array().unwrap().iter();
    let rows = |cell: &'_ Value| cell["workload"].as_str().unwrap().to_owned();
    cells.flat_map(|cell| cell["rows"].as_array().unwrap().iter().map(move |row| (rows(cell), row))).collect()
}

#[test]
fn every_path_and_workload_has_figures_and_nothing_is_left() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let args = ["--rounds", "2", "--workload", "tcp_rr,tcp_crr,tcp_stream,udp_rr,udp_pps,udp_ndr"];
    let report = report(&lab, &args);
    assert_eq!(report["schema"], "veth-bench/1");
    assert_eq!(report["partial"], false);
    let names: Vec<&str> =
        report["paths"].as_array().unwrap().iter().map(|path| path["name"].as_str().unwrap()).collect();
    let expected = ["loopback", "direct", "null-redirect", "wire", "switch", "bridge", "route", "macvlan"];
    for name in expected {
        assert!(names.contains(&name), "{name} is not among {names:?}: {}", report["skipped"]);
    }
    let all = rows(&report);
    let cells = report["results"].as_array().unwrap().len();
    assert_eq!(all.len(), cells * names.len());
    for (workload, row) in all {
        assert!(row["failed"].is_null(), "{workload}: {row}");
        let rate = row["rate"]["median"].as_f64().unwrap();
        assert!(workload == "udp_ndr" || rate > 0.0, "{workload}: {row}");
        assert_eq!(row["rounds"].as_array().unwrap().len(), 2, "{workload}: {row}");
        assert!(row["path"] != "direct" || row["ratio"]["median"] == 1.0, "{workload}: {row}");
        let is_timed = ["tcp_rr", "tcp_crr", "udp_rr"].contains(&workload.as_str());
        assert_eq!(row["latency"]["count"].as_u64().is_some_and(|count| count > 0), is_timed, "{row}");
    }
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn hooks_families_pairs_and_tuning_can_be_chosen() {
    let lab = Lab::new();
    let mut paths = "switch:clsact,switch:clsact:host,wire:clsact".to_owned();
    if need::is_at_least(6, 6) {
        paths += ",switch:tcx:peer,switch+xdp,wire:xdp:devmap,switch+big-tcp,bridge@3";
    }
    let args =
        ["--rounds", "1", "--workload", "tcp_rr,tcp_stream", "--ipv6", "--pairs", "2", "--path", &paths];
    let report = report(&lab, &args);
    let hook = |name: &str| {
        let path = report["paths"].as_array().unwrap().iter().find(|path| path["name"] == name);
        path.unwrap()["hook"].as_str().unwrap().to_owned()
    };
    assert_eq!(hook("switch:clsact"), "clsact + peer");
    assert_eq!(hook("switch:clsact:host"), "clsact + host");
    for (_, row) in rows(&report) {
        assert!(row["failed"].is_null() && row["rate"]["median"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert_eq!(report["method"]["ip_version"], 6);
}

#[test]
fn frames_that_the_kernel_makes_arrive() {
    if !need::kernel(6, 2, "XDP redirects on veth that can be trusted") {
        return;
    }
    let lab = Lab::new();
    let paths = ["null-redirect", "wire", "switch", "switch+xdp", "bridge"];
    let report = report(&lab, &["--rounds", "1", "--workload", "xdp_pps", "--path", &paths.join(",")]);
    let all = rows(&report);
    for path in paths {
        let (_, row) = all.iter().find(|(_, row)| row["path"] == path).unwrap();
        assert!(row["failed"].is_null() && row["rate"]["median"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn more_pods_and_pods_that_come_and_go_are_compared_with_the_same_without() {
    let lab = Lab::new();
    for (args, names) in [
        (&["scale", "--pods", "2,3"][..], ["switch", "switch@3", "bridge", "bridge@3"]),
        (&["churn", "--pods", "3"], ["switch@3", "switch+churn@3", "bridge@3", "bridge+churn@3"]),
    ] {
        let args = [args, &["--time", "50ms", "--rounds", "2", "--json", "-"]].concat();
        let report: Value = serde_json::from_str(&bench(&lab, &args)).unwrap();
        let all = rows(&report);
        for name in names {
            let (_, row) = all.iter().find(|(_, row)| row["path"] == name).unwrap();
            assert!(row["failed"].is_null() && row["rate"]["median"].as_f64().unwrap() > 0.0, "{row}");
        }
        let verdicts = report["verdicts"].to_string();
        assert!(verdicts.contains(&format!("{}, tcp_rr", names[1])), "{verdicts}");
        assert!(verdicts.contains(" of the same "), "{verdicts}");
    }
}

#[test]
fn every_program_has_its_cost_and_does_what_is_said() {
    let lab = Lab::new();
    let costs: Value = serde_json::from_str(&bench(&lab, &["prog", "--json"])).unwrap();
    let costs = costs.as_array().unwrap();
    assert!(costs.iter().filter(|cost| cost["program"] == "veth_ingress").count() >= 6, "{costs:?}");
    for cost in costs {
        let (frame, is_xdp) = (cost["frame"].as_str().unwrap(), cost["program"] == "veth_xdp");
        // TC_ACT_UNSPEC (TCX_NEXT), TC_ACT_SHOT, TC_ACT_REDIRECT; XDP_PASS, XDP_DROP, XDP_REDIRECT.
        let expected: u32 = match frame.rsplit(": ").next().unwrap() {
            "redirected" => [7, 4][usize::from(is_xdp)],
            "dropped" => [2, 1][usize::from(is_xdp)],
            _ => [u32::MAX, 2][usize::from(is_xdp)],
        };
        assert_eq!(cost["action"], expected, "{cost}");
    }
}

#[test]
fn tables_and_pages_say_what_was_measured() {
    let lab = Lab::new();
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("report.html");
    let page = page.to_str().unwrap();
    let args = ["--time", "5ms", "--rounds", "3", "--path", "switch,bridge", "--workload", "tcp_rr"];
    let text = bench(&lab, &[&args[..], &["--html", page, "--seed", "7"]].concat());
    assert!(text.contains("switch, tcp_rr, ends on one CPU: ") && text.contains("seed 7"), "{text}");
    let html = fs::read_to_string(page).unwrap();
    for part in ["<svg", "bridge", "prefers-color-scheme", "Every round", "pods = ["] {
        assert!(html.contains(part), "no {part}");
    }
    for fetch in [" src=", " href=", "url(", "@import"] {
        assert!(!html.contains(fetch), "{fetch} fetches something");
    }
}

#[test]
fn what_others_made_is_measured_and_a_slower_path_is_found() {
    if !need::kernel(6, 6, "TCX") {
        return;
    }
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let folder = TempDir::new().unwrap();
    let measure = |name: &str| {
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        let args = ["--time", "5ms", "--rounds", "40", "--workload", "tcp_rr", "--placement", "one"];
        bench(
            &lab,
            &[&args[..], &["--attach", "lab-a", "lab-b", "--path", "direct", "--json", &path]].concat(),
        );
        path
    };
    let before = measure("before.json");
    let index = lab.link("lab-a").index;
    let slow = lab.run(move || Foreign::slow_tcx(index));
    let after = measure("after.json");
    assert!(slow.seen() > 0, "it was in the way");
    // The same is not slower, though a few rounds may not tell.
    let same = lab.veth(&["bench", "compare", &before, &before]);
    assert!(matches!(same.status.code(), Some(0 | 5)), "{same:?}");
    let compared = lab.veth(&["bench", "compare", &before, &after, "--json"]);
    assert_eq!(compared.status.code(), Some(4), "{compared:?}");
    let compared: Value = serde_json::from_str(&compared.out).unwrap();
    assert_eq!(compared["verdict"], "fail");
    assert_eq!(compared["changes"][0]["path"], "attached");
    lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
}

#[test]
fn a_path_on_which_nothing_arrives_says_what_was_sent() {
    if !need::kernel(6, 6, "TCX") {
        return;
    }
    let lab = Lab::new();
    // Or it would be the question for an address that nobody answers.
    let file = Declared::new(&LAN.replace("pods", "neighbours = true\npods"));
    lab.ok(&file.args("up"));
    let index = lab.link("lab-b").index;
    // What the answering end sends is lost.
    let _filter = lab.run(move || Foreign::tcx(index, Place::First, Verdict::Drop));
    let args = ["bench", "--time", "5ms", "--rounds", "1", "--workload", "udp_rr", "--placement", "one"];
    let ran = lab.veth(&[&args[..], &["--attach", "lab-a", "lab-b", "--path", "direct"]].concat());
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    assert!(ran.out.contains("attached: nothing arrived at the"), "{}", ran.out);
    assert!(ran.out.contains("eth0 of the answering end"), "{}", ran.out);
}

#[test]
fn interrupted_it_writes_what_it_has() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("report.json");
    let args = ["bench", "--workload", "tcp_rr", "--rounds", "10000", "--path", "switch", "--json"];
    let measure_for = |time: Duration| -> Value {
        let running = lab.start(&[&args[..], &[path.to_str().unwrap()]].concat(), &[]);
        std::thread::sleep(time);
        running.signal(Signal::SIGINT);
        let finished = running.finish();
        assert_eq!(finished.status.code(), Some(130), "{finished:?}");
        let report: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(report["partial"], true);
        report
    };
    // Usually the first is enough to have measured something.
    let mut reports = [3, 10, 30].map(Duration::from_secs).into_iter().map(measure_for);
    assert!(reports.any(|report| !rows(&report).is_empty()));
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    let folder = TempDir::new().unwrap();
    let junk = folder.path().join("junk.json");
    fs::write(&junk, "{\"schema\": \"other/1\"}").unwrap();
    let junk = junk.to_str().unwrap();
    for (args, words) in [
        (&["--path", "switchh"][..], "did you mean `switch`"),
        (&["--workload", "tcp"], "tcp_rr"),
        (&["--html", "/nowhere/report.html"], "write /nowhere/report.html"),
        (&["--rounds", "0"], "0 is not in 1..=10000"),
        (&["--workload", "udp_ndr", "--placement", "one"], "udp_ndr needs its ends on two CPUs"),
        (&["--workload", "udp_rr", "--size", "70000"], "too long"),
        (&["--attach", "nothing", "nobody"], "nothing cannot be measured"),
        (&["compare", junk, junk], "has the schema other/1"),
        (&["compare", "/nowhere", junk], "read /nowhere"),
        (&["compare", junk, junk, "--fail-below", "0"], "--fail-below is a ratio above 0"),
        (&["scale", "--pods", "1"], "1 is not in 2..=1000"),
    ] {
        let error = lab.veth(&[&["bench"], args].concat());
        assert!(matches!(error.status.code(), Some(1 | 2)), "{args:?}: {error:?}");
        assert!(error.err.contains(words), "{args:?}: {}", error.err);
    }
}
