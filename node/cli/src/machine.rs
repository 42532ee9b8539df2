//! What this machine has: memory, and a place for data.

use std::path::PathBuf;

use trellis_wire::LatticeName;

/// What is taken for the machine's memory where it cannot be read.
const MEMORY_BYTES_DEFAULT: u64 = 4 << 30;

/// `trellis/<lattice>` under `$XDG_DATA_HOME`, or under `~/.local/share` (XDG Base Directory Specification).
pub(crate) fn data_dir(lattice: &LatticeName) -> Result<PathBuf, String> {
    let absolute = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    let base =
        base.ok_or("neither XDG_DATA_HOME nor HOME is set: say with --data-dir where the node keeps its data")?;
    Ok(base.join("trellis").join(lattice.as_str()))
}

/// Half of the memory that this process may use: the machine's, or its control group's where that is less.
pub(crate) fn half_of_memory_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_total_bytes(&text));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(group).min().unwrap_or(MEMORY_BYTES_DEFAULT) / 2
}

/// `MemTotal:       24653100 kB`.
fn memory_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_read_in_kib() {
        assert_eq!(memory_total_bytes("MemTotal:       24653100 kB\nMemFree: 1 kB\n"), Some(24_653_100 << 10));
        assert_eq!(memory_total_bytes("MemFree: 1 kB\n"), None);
        assert!(half_of_memory_bytes() > 1 << 20);
    }
}
