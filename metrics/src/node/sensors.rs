//! `/sys/class/hwmon` and `/sys/class/thermal`: temperatures, fans, voltages, power.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::read::{Label, Points, Reason, line};
use crate::catalogue::node;
use crate::model::Family;

/// Most sensors of a host with points.
const MOST: usize = 512;

/// Kind and property of a sensor's file, its family, and how many of the kernel's units make one of ours (sysfs-interface.rst
/// of the kernel).
static KNOWN: [(&str, &str, &Family, f64); 9] = [
    ("temp", "input", &node::HWMON_TEMP_CELSIUS, 1e3),
    ("temp", "max", &node::HWMON_TEMP_MAX_CELSIUS, 1e3),
    ("temp", "crit", &node::HWMON_TEMP_CRIT_CELSIUS, 1e3),
    ("temp", "crit_alarm", &node::HWMON_TEMP_CRIT_ALARM, 1.0),
    ("fan", "input", &node::HWMON_FAN_RPM, 1.0),
    ("in", "input", &node::HWMON_IN_VOLTS, 1e3),
    ("curr", "input", &node::HWMON_CURR_AMPS, 1e3),
    ("power", "input", &node::HWMON_POWER_WATT, 1e6),
    ("power", "average", &node::HWMON_POWER_AVERAGE_WATT, 1e6),
];

/// Splits a file's name such as `temp12_crit_alarm` into sensor (`temp12`), kind (`temp`) and property (`crit_alarm`).
fn split(file: &str) -> Option<(&str, &str, &str)> {
    let (sensor, property) = file.split_once('_')?;
    let kind = sensor.trim_end_matches(|c: char| c.is_ascii_digit());
    (kind.len() < sensor.len()).then_some((sensor, kind, property))
}

/// The letters that node_exporter leaves in names of chips; others become `_`.
fn clean(name: &str) -> String {
    let letter = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | ':') => c,
        _ => '_',
    };
    name.chars().map(letter).collect::<String>().trim_matches('_').to_owned()
}

/// Entries of a folder by name; none where it does not exist.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut entries: Vec<(String, PathBuf)> =
        found.flatten().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    entries.sort();
    entries
}

/// Name of a chip that stays the same over restarts: bus and device, else what the chip says, else its folder.
fn chip_name(folder: &Path, number: &str) -> String {
    let device = folder.join("device").canonicalize().ok();
    let of = |path: Option<&Path>| clean(&path.and_then(Path::file_name).unwrap_or_default().to_string_lossy());
    let (bus, name) = (of(device.as_deref().and_then(Path::parent)), of(device.as_deref()));
    match (bus.is_empty(), name.is_empty()) {
        (false, false) => format!("{bus}_{name}"),
        (true, false) => name,
        _ => [clean(&line(&folder.join("name")).unwrap_or_default()), clean(number)]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or_default(),
    }
}

/// Points of the monitoring chips. A host without has no points: virtual machines mostly are.
pub(super) fn chips(class: &Path, points: &mut Points<'_>) -> Result<(), Reason> {
    let found = entries(class);
    if found.is_empty() {
        return Err(format!("{} has no chips on this host", class.display()));
    }
    let names: Vec<String> = found.iter().map(|(number, folder)| chip_name(folder, number)).collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    for name in &names {
        *times.entry(name).or_default() += 1;
    }
    let mut room = MOST;
    for ((number, folder), name) in found.iter().zip(&names) {
        // several chips of one device are told apart by their folder
        let chip: Label = if times[name.as_str()] > 1 { format!("{name}_{number}") } else { name.clone() }.into();
        let said = clean(&line(&folder.join("name")).unwrap_or_default());
        if !said.is_empty() {
            points.at(&node::HWMON_CHIP_NAMES, [chip.clone(), said.into()], 1);
        }
        let mut files: BTreeMap<String, PathBuf> = entries(&folder.join("device")).into_iter().collect();
        files.extend(entries(folder));
        for (file, path) in files {
            let Some((sensor, kind, property)) = split(&file) else { continue };
            if property == "label"
                && KNOWN.iter().any(|known| known.0 == kind)
                && let Some(label) = line(&path)
            {
                let labels = [chip.clone(), sensor.to_owned().into(), label.into()];
                points.at(&node::HWMON_SENSOR_LABEL, labels, 1);
            }
            let Some((_, _, family, units)) = KNOWN.iter().find(|known| (known.0, known.1) == (kind, property)) else {
                continue;
            };
            // a sensor that is off or broken gives an error when it is read
            let Some(value) = line(&path).and_then(|text| text.parse::<i64>().ok()) else { continue };
            if room == 0 {
                return Ok(());
            }
            room -= 1;
            points.at(family, [chip.clone(), sensor.to_owned().into()], value as f64 / units);
        }
    }
    Ok(())
}

/// Points of the thermal zones.
pub(super) fn zones(class: &Path, points: &mut Points<'_>) {
    for (name, folder) in entries(class).into_iter().take(MOST) {
        let Some(number) = name.strip_prefix("thermal_zone") else { continue };
        let (Some(kind), Some(value)) = (line(&folder.join("type")), line(&folder.join("temp"))) else { continue };
        if let Ok(value) = value.parse::<i64>() {
            points.at(&node::THERMAL_ZONE_TEMP, [number.to_owned().into(), kind.into()], value as f64 / 1000.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::read::tests::{filled, value, write};

    #[test]
    fn chips_have_names_that_stay_and_sensors_base_units() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("devices/platform/coretemp.0/power/control", "auto\n"),
                ("class/hwmon0/name", "coretemp\n"),
                ("class/hwmon0/temp1_input", "-5500\n"),
                ("class/hwmon0/temp1_label", "Package id 0\n"),
                ("class/hwmon0/temp1_crit", "100000\n"),
                ("class/hwmon0/temp1_crit_alarm", "1\n"),
                ("class/hwmon0/temp2_input", "broken\n"),
                ("class/hwmon0/power1_average", "42000000\n"),
                ("class/hwmon0/temp_input", "1\n"),
                ("class/hwmon1/name", "Fan Box!\n"),
                ("class/hwmon1/fan3_input", "1200\n"),
                ("class/hwmon2/in0_input", "1205\n"),
                ("class/hwmon2/in0_new", "1\n"),
                ("class/hwmon3/name", "Fan Box!\n"),
            ],
        );
        let class = root.path().join("class");
        std::os::unix::fs::symlink(root.path().join("devices/platform/coretemp.0"), class.join("hwmon0/device"))
            .unwrap();
        let (batch, answer) = filled(|points| chips(&class, points));
        answer.unwrap();
        let core = ["platform_coretemp_0", "temp1"];
        assert_eq!(value(&batch, &node::HWMON_TEMP_CELSIUS, &core), Some(-5.5));
        assert_eq!(value(&batch, &node::HWMON_TEMP_CRIT_CELSIUS, &core), Some(100.0));
        assert_eq!(value(&batch, &node::HWMON_TEMP_CRIT_ALARM, &core), Some(1.0));
        assert_eq!(value(&batch, &node::HWMON_SENSOR_LABEL, &[core[0], core[1], "Package id 0"]), Some(1.0));
        assert_eq!(value(&batch, &node::HWMON_POWER_AVERAGE_WATT, &[core[0], "power1"]), Some(42.0));
        assert_eq!(value(&batch, &node::HWMON_FAN_RPM, &["fan_box_hwmon1", "fan3"]), Some(1200.0));
        assert_eq!(value(&batch, &node::HWMON_IN_VOLTS, &["hwmon2", "in0"]), Some(1.205));
        assert_eq!(batch.points(&node::HWMON_TEMP_CELSIUS).len(), 1);
        assert!(filled(|points| chips(Path::new("/nowhere"), points)).1.unwrap_err().contains("no chips"));
    }

    #[test]
    fn zones_are_told_by_number_and_type() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("thermal_zone0/type", "x86_pkg_temp\n"),
                ("thermal_zone0/temp", "51250\n"),
                ("thermal_zone1/temp", "1\n"),
                ("thermal_zone2/type", "a\n"),
                ("thermal_zone2/temp", "-\n"),
                ("cooling_device0/type", "Processor\n"),
            ],
        );
        let (batch, ()) = filled(|points| zones(root.path(), points));
        assert_eq!(value(&batch, &node::THERMAL_ZONE_TEMP, &["0", "x86_pkg_temp"]), Some(51.25));
        assert_eq!(batch.series(), 1);
        for (file, parts) in [
            ("temp12_crit_alarm", Some(("temp12", "temp", "crit_alarm"))),
            ("temp_input", None),
            ("name", None),
            ("7_x", Some(("7", "", "x"))),
            ("_", None),
        ] {
            assert_eq!(split(file), parts, "{file}");
        }
    }
}
