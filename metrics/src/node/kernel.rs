//! Load, pressure, open files, and what the host runs.

use std::io::ErrorKind;
use std::path::Path;

use procfs::{FromRead, ProcError};

use super::read::{Label, Points, Reason, line, number, optional, text};
use crate::catalogue::{host, node};

/// Points of `/proc/loadavg`.
pub(super) fn load(proc: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let path = proc.join("loadavg");
    let text = text(&path)?;
    let load = procfs::LoadAverage::from_read(text.as_bytes())
        .map_err(|e| format!("{}: {e}, expected a line such as '0.20 0.18 0.12 1/80 11206'", path.display()))?;
    for (common, own, value) in [
        (&node::LOAD1, &host::LOAD_1M, load.one),
        (&node::LOAD5, &host::LOAD_5M, load.five),
        (&node::LOAD15, &host::LOAD_15M, load.fifteen),
    ] {
        // three numbers with two decimals, which the crate reads as f32
        let value = (f64::from(value) * 100.0).round() / 100.0;
        points.set(common, value);
        points.set(own, value);
    }
    Ok(())
}

/// Microseconds of a line of a `pressure` file, `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`.
fn stalled(text: &str, kind: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total=")?.parse().ok())
}

/// Points of `/proc/pressure`.
pub(super) fn pressure(proc: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let folder = proc.join("pressure");
    let mut found = false;
    for resource in ["cpu", "io", "memory", "irq"] {
        let path = folder.join(resource);
        let text = match optional(&path) {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            // booted with psi=0: the files are there and cannot be read
            Err(reason) => return Err(format!("{reason}; start the kernel with psi=1 to have pressure")),
        };
        for (kind, word) in [("some", "waiting"), ("full", "stalled")] {
            let Some(microseconds) = stalled(&text, kind) else { continue };
            // for CPUs, all threads of the host at once never wait: the kernel says 0 there
            if (resource, kind) == ("cpu", "full") {
                continue;
            }
            found = true;
            let seconds = microseconds as f64 / 1e6;
            if let Some(family) = node::find(&format!("node_pressure_{resource}_{word}_seconds")) {
                points.set(family, seconds);
            }
            points.at(&host::PRESSURE_TIME, [resource.into(), kind.into()], seconds);
        }
    }
    if found {
        Ok(())
    } else {
        Err(format!(
            "found no pressure in {}, expected lines such as 'some … total=0'; the kernel needs CONFIG_PSI and psi=1",
            folder.display()
        ))
    }
}

/// Points of the pool of entropy.
pub(super) fn entropy(proc: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let folder = proc.join("sys/kernel/random");
    points.set(&node::ENTROPY_AVAILABLE_BITS, number(&folder.join("entropy_avail"))?);
    points.set(&node::ENTROPY_POOL_SIZE_BITS, number(&folder.join("poolsize"))?);
    Ok(())
}

/// Points of `/proc/sys/fs/file-nr`: allocated, unused, most.
pub(super) fn files(proc: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let path = proc.join("sys/fs/file-nr");
    let text = text(&path)?;
    let numbers: Option<Vec<u64>> = text.split_ascii_whitespace().map(|word| word.parse().ok()).collect();
    let Some([allocated, _, most, ..]) = numbers.as_deref() else {
        let found = super::read::shortened(text.trim());
        return Err(format!("{}: found '{found}', expected three numbers", path.display()));
    };
    points.set(&node::FILEFD_ALLOCATED, *allocated);
    points.set(&node::FILEFD_MAXIMUM, *most);
    Ok(())
}

/// Points of connection tracking; none, and no reason, on a kernel or host without.
pub(super) fn conntrack(proc: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let folder = proc.join("sys/net/netfilter");
    points.set(&node::NF_CONNTRACK_ENTRIES, number(&folder.join("nf_conntrack_count"))?);
    points.set(&node::NF_CONNTRACK_ENTRIES_LIMIT, number(&folder.join("nf_conntrack_max"))?);
    if let Some(text) = optional(&proc.join("net/stat/nf_conntrack"))? {
        super::protocols::conntrack(&text, points);
    }
    Ok(())
}

/// Time since the start, and the most threads that there may be.
pub(super) fn host(proc: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let path = proc.join("uptime");
    let uptime = procfs::Uptime::from_file(&path).map_err(|e| match e {
        ProcError::Io(e, _) if e.kind() == ErrorKind::NotFound => {
            format!("{} does not exist on this host", path.display())
        }
        e => format!("{}: {e}, expected two numbers", path.display()),
    })?;
    points.set(&host::UPTIME, uptime.uptime);
    // whichever is reached first
    let most = ["sys/kernel/pid_max", "sys/kernel/threads-max"].map(|file| number(&proc.join(file)));
    if let Some(most) = most.into_iter().flatten().min() {
        points.set(&host::PROCESS_LIMIT, most);
    }
    Ok(())
}

/// Points of uname(2), from the files below `sys/kernel`; the machine's kind has none before Linux 6.1.
pub(super) fn uname(proc: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let folder = proc.join("sys/kernel");
    let file = |name: &str| -> Result<Label, Reason> {
        let path = folder.join(name);
        line(&path).map(Label::from).ok_or_else(|| format!("{} does not exist on this host", path.display()))
    };
    let machine =
        line(&folder.join("arch")).unwrap_or_else(|| rustix::system::uname().machine().to_string_lossy().into_owned());
    let labels =
        [file("ostype")?, file("osrelease")?, file("version")?, machine.into(), file("hostname")?, file("domainname")?];
    points.at(&node::UNAME_INFO, labels, 1);
    Ok(())
}

/// The value of a key of os-release(5), without quotes and backslashes.
fn os_value(text: &str, key: &str) -> String {
    let value =
        text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
    let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let mut plain = String::with_capacity(value.len());
    let mut letters = quoted.unwrap_or(value).chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            letter => plain.push(letter),
        }
    }
    plain
}

/// Major and minor of a version such as `12`, `22.04` or `9.4.1`.
fn version(text: &str) -> Option<f64> {
    let mut parts = text.split('.');
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty();
    let major = parts.next().filter(|part| number(part))?;
    let minor = parts.next().filter(|part| number(part)).unwrap_or("0");
    format!("{major}.{minor}").parse().ok()
}

/// Points of os-release(5).
pub(super) fn os(root: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let mut found = None;
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if found.is_none() {
            found = optional(&root.join(path))?;
        }
    }
    let Some(text) = found else {
        return Err(format!(
            "{} does not exist on this host, nor does usr/lib/os-release",
            root.join("etc/os-release").display()
        ));
    };
    let value = |key: &str| Label::from(os_value(&text, key));
    points.at(
        &node::OS_INFO,
        [
            value("BUILD_ID"),
            value("ID"),
            value("ID_LIKE"),
            value("IMAGE_ID"),
            value("IMAGE_VERSION"),
            value("NAME"),
            value("PRETTY_NAME"),
            value("VARIANT"),
            value("VARIANT_ID"),
            value("VERSION"),
            value("VERSION_CODENAME"),
            value("VERSION_ID"),
        ],
        1,
    );
    if let Some(version) = version(&value("VERSION_ID")) {
        points.at(&node::OS_VERSION, [value("ID"), value("ID_LIKE"), value("NAME")], version);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::read::tests::{filled, value, write};

    #[test]
    fn load_and_pressure_are_read() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("loadavg", "0.20 0.23 10.76 1/80 11206\n"),
                (
                    "pressure/cpu",
                    "some avg10=1.24 avg60=1.11 avg300=1.58 total=4995364260\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
                ),
                ("pressure/io", "some avg10=2.24 total=164359999\nfull total=77588229 new=1\n"),
                ("pressure/memory", "something\nfull total=x\nsome total=18446744073709551616\n"),
                ("pressure/irq", "full avg10=0.00 avg60=0.00 avg300=0.00 total=250000\n"),
            ],
        );
        let (batch, answers) = filled(|points| (load(root.path(), points), pressure(root.path(), points)));
        assert_eq!(answers, (Ok(()), Ok(())));
        assert_eq!(value(&batch, &node::LOAD15, &[]), Some(10.76));
        assert_eq!(value(&batch, &host::LOAD_1M, &[]), Some(0.2));
        assert_eq!(value(&batch, &node::PRESSURE_CPU_WAITING, &[]), Some(4995.36426));
        assert_eq!(value(&batch, &node::PRESSURE_IO_STALLED, &[]), Some(77.588_229));
        assert_eq!(value(&batch, &node::PRESSURE_IRQ_STALLED, &[]), Some(0.25));
        assert_eq!(value(&batch, &host::PRESSURE_TIME, &["io", "some"]), Some(164.359_999));
        assert_eq!(value(&batch, &node::PRESSURE_MEMORY_STALLED, &[]), None);
        write(root.path(), &[("loadavg", "high\n"), ("pressure/cpu", "")]);
        for file in ["io", "memory", "irq"] {
            std::fs::remove_file(root.path().join("pressure").join(file)).unwrap();
        }
        let (_, (load, pressure)) = filled(|points| (load(root.path(), points), pressure(root.path(), points)));
        assert!(load.unwrap_err().contains("expected a line such as"));
        assert!(pressure.unwrap_err().contains("the kernel needs CONFIG_PSI"));
    }

    #[test]
    fn numbers_of_the_kernel_are_read() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("sys/kernel/random/entropy_avail", "256\n"),
                ("sys/kernel/random/poolsize", "256\n"),
                ("sys/fs/file-nr", "601\t0\t9223372036854775807\n"),
                ("sys/net/netfilter/nf_conntrack_count", "14\n"),
                ("sys/net/netfilter/nf_conntrack_max", "262144\n"),
                ("net/stat/nf_conntrack", "entries found\n0e 0a\n"),
                ("uptime", "23333.33 46000.00\n"),
                ("sys/kernel/pid_max", "4194304\n"),
                ("sys/kernel/threads-max", "192000\n"),
            ],
        );
        let at = root.path();
        let all =
            |points: &mut Points<'_>| [entropy(at, points), files(at, points), conntrack(at, points), host(at, points)];
        let (batch, answers) = filled(all);
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert_eq!(value(&batch, &node::FILEFD_ALLOCATED, &[]), Some(601.0));
        assert_eq!(value(&batch, &node::FILEFD_MAXIMUM, &[]), Some(9_223_372_036_854_775_807.0));
        assert_eq!(value(&batch, &node::NF_CONNTRACK_STAT_FOUND, &[]), Some(10.0));
        assert_eq!(value(&batch, &host::UPTIME, &[]), Some(23333.33));
        assert_eq!(value(&batch, &host::PROCESS_LIMIT, &[]), Some(192_000.0));
        write(at, &[("sys/fs/file-nr", "601\n"), ("uptime", "\n"), ("sys/net/netfilter/nf_conntrack_max", "many\n")]);
        std::fs::remove_file(at.join("sys/kernel/random/poolsize")).unwrap();
        let (_, answers) = filled(all);
        for (answer, expected) in
            answers.into_iter().zip(["does not exist", "three numbers", "found 'many'", "two numbers"])
        {
            let reason = answer.unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn the_system_is_named() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("proc/sys/kernel/ostype", "Linux\n"),
                ("proc/sys/kernel/osrelease", "6.18.44\n"),
                ("proc/sys/kernel/version", "#1 SMP\n"),
                ("proc/sys/kernel/arch", "riscv64\n"),
                ("proc/sys/kernel/hostname", "node7\n"),
                ("proc/sys/kernel/domainname", "(none)\n"),
                (
                    "usr/lib/os-release",
                    "# comment\nNAME=\"A \\\"B\\\" \\\\C\"\nID=debian\nID_LIKE='x y'\nVERSION_ID=\"22.04\"\nNAMEX=5\nVERSION\n",
                ),
            ],
        );
        let (batch, answers) = filled(|points| (uname(&root.path().join("proc"), points), os(root.path(), points)));
        assert_eq!(answers, (Ok(()), Ok(())));
        let labels = ["Linux", "6.18.44", "#1 SMP", "riscv64", "node7", "(none)"];
        assert_eq!(value(&batch, &node::UNAME_INFO, &labels), Some(1.0));
        assert_eq!(value(&batch, &node::OS_VERSION, &["debian", "x y", "A \"B\" \\C"]), Some(22.04));
        write(root.path(), &[("etc/os-release", "ID=arch\nVERSION_ID=rolling\n")]);
        let (batch, _) = filled(|points| os(root.path(), points));
        assert_eq!((batch.points(&node::OS_INFO).len(), batch.points(&node::OS_VERSION).len()), (1, 0));
        let nowhere = Path::new("/nowhere");
        let (_, answers) = filled(|points| [uname(nowhere, points), os(nowhere, points)]);
        assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|reason| reason.contains("does not exist"))));
        for (text, expected) in [("12", Some(12.0)), ("9.4.1", Some(9.4)), ("", None), ("-1", None), ("2.x", Some(2.0))]
        {
            assert_eq!(version(text), expected, "{text}");
        }
    }
}
