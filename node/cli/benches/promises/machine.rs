//! What the figures were measured on.

use std::process::Command;

/// One line: processor, cores, memory, kernel, and how busy the machine was before the bench began.
pub(crate) fn described() -> String {
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo");
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or_default();
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output().unwrap();
    format!(
        "Measured on {}, {cores} cores of {model}, {} GiB, Linux {}; load average before: {load}.",
        String::from_utf8_lossy(&date.stdout).trim(),
        kib >> 20,
        kernel.trim(),
    )
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
