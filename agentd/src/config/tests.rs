use std::path::PathBuf;

use super::*;

fn write(text: &str) -> (tempfile::TempDir, Flags) {
    let folder = tempfile::Builder::new().prefix("agentd-test-config-").tempdir().unwrap();
    let file = folder.path().join("agentd.toml");
    std::fs::write(&file, text).unwrap();
    (folder, Flags { config: Some(file), ..Flags::default() })
}

fn load_text(text: &str) -> Result<Loaded, Vec<Problem>> {
    let (_folder, flags) = write(text);
    load(&flags, std::iter::empty())
}

fn load_env(pairs: &[(&str, &str)]) -> Result<Loaded, Vec<Problem>> {
    let (_folder, flags) = write("");
    load(&flags, pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn load_set(sets: &[&str]) -> Result<Loaded, Vec<Problem>> {
    let (_folder, mut flags) = write("");
    flags.set = sets.iter().map(|set| (*set).to_owned()).collect();
    load(&flags, std::iter::empty())
}

#[test]
fn empty_file_gives_the_defaults() {
    let loaded = load_text("").unwrap();
    assert_eq!(loaded.config, Config::defaults("agentd", None));
    assert!(loaded.sources.values().all(|origin| *origin == Origin::Default));
    assert_eq!(loaded.config.paths.run, PathBuf::from("/run/agentd"));
}

#[test]
fn every_malformed_file_is_named_by_line_and_field() {
    // (file, line, field, words of the message)
    let cases: &[(&str, usize, &str, &str)] = &[
        ("instance = \"Big\"", 1, "instance", "found 'Big'"),
        ("[otlp]\nendpoint = \"localhost:4318\"", 2, "otlp.endpoint", "http://HOST:PORT"),
        ("[otlp]\nheaders = [\"host=x\"]", 2, "otlp.headers[0]", "a header and its value"),
        ("[otlp]\nheader_files = [\"x=token\"]", 2, "otlp.header_files[0]", "absolute path"),
        ("[otlp]\ntrace_ratio = 1.5", 2, "otlp.trace_ratio", "from 0 to 1"),
        ("[otlp]\ntls_key = \"/k\"", 2, "otlp.tls_key", "needs otlp.tls_certificate"),
        ("[otlp]\nendpoint = \"http://a\"\ntls_ca = \"/c\"", 3, "otlp.tls_ca", "without TLS"),
        ("instance = \"a-name-of-more-than-twenty\"", 1, "instance", "1 to 20"),
        ("instance = 5", 1, "instance", "found the integer 5"),
        ("\nhostname = \"a..b\"", 2, "hostname", "host name"),
        ("instnace = \"a\"", 1, "instnace", "did you mean 'instance'"),
        ("[netwrok]\nmtu = 1500", 1, "netwrok", "did you mean 'network'"),
        ("[network]\nmut = 1500", 2, "network.mut", "did you mean 'mtu'"),
        ("[network]\nzzzzzzzz = 1", 2, "network.zzzzzzzz", "expected one of bridge"),
        ("[pods]\nmtu = 1500", 2, "pods.mtu", "belongs in [network]"),
        ("network = 3", 1, "network", "expected the table [network]"),
        ("[network]\n\nmtu = 99999", 3, "network.mtu", "from 0 to 65535"),
        ("[network]\nmtu = -1", 2, "network.mtu", "found the integer -1"),
        ("[network]\nmtu = 10000", 2, "network.mtu", "at most 9216"),
        ("[network]\nmtu = \"1500\"", 2, "network.mtu", "found '1500'; expected a whole number"),
        ("[network]\nmtu = 1500.5", 2, "network.mtu", "found the number 1500.5"),
        ("[network]\nmtu = 99999999999999999999", 2, "network.mtu", "whole number"),
        ("[network]\nsubnet = \"10.0.0.1/24\"", 2, "network.subnet", "no bits beyond the prefix"),
        ("[network]\nsubnet = \"10.0.0.0/30\"", 2, "network.subnet", "/8 to /29"),
        ("[network]\nsubnet6 = \"fd00::1/64\"", 2, "network.subnet6", "/8 to /96"),
        ("[network]\nport_range = \"40000-30000\"", 2, "network.port_range", "not above the last"),
        ("[network]\nbridge = \"a-name-too-long-0\"", 2, "network.bridge", "1 to 15 characters"),
        ("[network]\ndns_servers = [\"192.0.2.1\",\n  \"example\"]", 3, "network.dns_servers[1]", "an IP address"),
        ("[network]\ndns_servers = \"192.0.2.1\"", 2, "network.dns_servers", "a list"),
        ("[network]\naliases = [\"dcos\", \"-x\"]", 2, "network.aliases[1]", "the name of a network"),
        ("[paths]\nrun = \"run/agentd\"", 2, "paths.run", "absolute path"),
        ("[paths]\nrun = \"/\"", 2, "paths.run", "a folder of its own"),
        ("[paths]\nrun = \"/run/../etc\"", 2, "paths.run", "without '..'"),
        ("[paths]\nrun = \"/x\"\nstate = \"/x\"", 3, "paths.state", "separate folders"),
        ("[paths]\nrun = \"/x/state/run\"\nstate = \"/x/state\"", 3, "paths.state", "separate folders"),
        ("[paths]\nstate = \"/etc/agentd\"", 2, "paths.state", "separate folders"),
        ("[paths]\ncni_plugins = [\"/a\", 7]", 2, "paths.cni_plugins[1]", "found the integer 7"),
        ("[reserved]\ncpus = -0.5", 2, "reserved.cpus", "found the number -0.5"),
        ("[reserved]\ncpus = nan", 2, "reserved.cpus", "a number from 0 to"),
        ("[reserved]\ncpus = 4\n[resources]\ncpus = 2.0", 2, "reserved.cpus", "some left for pods"),
        ("[resources]\nmemory_mib = 100", 2, "resources.memory_mib", "found 256 reserved of 100"),
        ("[pods]\ndisk_enforcement = \"qouta\"", 2, "pods.disk_enforcement", "auto, quota, loop, meter"),
        ("[pods]\npool_size = true", 2, "pods.pool_size", "found the boolean true"),
        ("[pods]\nkill_grace_seconds = 2026-11-20", 2, "pods.kill_grace_seconds", "the date"),
        ("[host_files]\netc = [\"hosts\",\n\"shadow\"]", 3, "host_files.etc[1]", "it holds secrets"),
        ("[host_files]\netc = [\"/etc/hosts\"]", 2, "host_files.etc[0]", "relative to /etc"),
        ("[host_files]\netc = [\"ssl\"]", 2, "host_files.etc[0]", "it holds secrets"),
        ("[host_files]\nallowed_host_paths = [\"/run/agentd\"]", 2, "host_files.allowed_host_paths[0]", "paths.run"),
        ("[artifacts]\nfile_roots = [\"/var/lib\"]", 2, "artifacts.file_roots[0]", "paths.state"),
        ("[images]\nlow_watermark = 90", 2, "images.low_watermark", "below the high one"),
        ("[images]\nhigh_watermark = 101", 2, "images.high_watermark", "from 1 to 100"),
        ("[images]\nkeep_blobs = \"yes\"", 2, "images.keep_blobs", "true or false"),
        ("[[images.registry]]\nmirrors = []", 1, "images.registry[0].host", "is missing"),
        ("[[images.registry]]\nhost = \"https://r.example\"", 2, "images.registry[0].host", "without https://"),
        ("[[images.registry]]\nhost = \"r.example\"\ninsecrue = true", 3, "images.registry[0].insecrue", "'insecure'"),
        ("[images.registry]\nhost = \"r.example\"", 1, "images.registry", "double brackets"),
        ("[logs]\nlevel = \"inof\"", 2, "logs.level", "found 'inof'"),
        ("[logs]\nformat = \"xml\"", 2, "logs.format", "text, json"),
        ("[api]\nsocket_mode = \"0666\"", 2, "api.socket_mode", "gives others nothing"),
        ("[api]\nsocket_mode = 660", 2, "api.socket_mode", "octal mode as text"),
        ("[api]\nlisten = [\"127.0.0.1\"]", 2, "api.listen[0]", "an IP address with a port"),
        ("[api]\nlisten = [\"127.0.0.1:0\"]", 2, "api.listen[0]", "an IP address with a port"),
        ("[api]\nlisten = [\"localhost:8443\"]", 2, "api.listen[0]", "an IP address with a port"),
        ("[api]\nlisten = [\"127.0.0.1:8443\"]", 2, "api.listen", "needs api.tls_certificate, api.tls_key, api.tls_c"),
        ("[api]\ninsecure = true\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:2\"]", 3, "api.listen[1]", "of loopback"),
        ("[api]\ninsecure = true\nlisten = [\"[::]:8443\"]", 3, "api.listen[0]", "of loopback"),
        ("[api]\ninsecure = true\ntls_key = \"/k\"", 2, "api.insecure", "exclude each other"),
        ("[api]\ntls_key = \"/k\"", 2, "api.tls_key", "needs api.tls_certificate, api.tls_client_ca"),
        ("[api]\nallowed_origins = [\"console.example\"]", 2, "api.allowed_origins[0]", "an origin"),
        ("[api]\nallowed_origins = [\"https://a.example/\"]", 2, "api.allowed_origins[0]", "without a path"),
        ("[api]\nallowed_hosts = [\"a.example:1\"]", 2, "api.allowed_hosts[0]", "without a port"),
        ("[sessions]\nrecord = \"yes\"", 2, "sessions.record", "never, tty, always"),
        ("[sessions]\nbuffer_kib = 32", 2, "sessions.buffer_kib", "from 64 to 16384"),
        ("[sessions]\ntotal = 8", 2, "sessions.total", "found per_container 64"),
        ("[observe]\ngroups = [\"net\", \"disk\"]", 2, "observe.groups[1]", "one of all, sched"),
        ("[observe]\nevents = [\"fork\"]", 2, "observe.events[0]", "connect-failed"),
        ("[observe]\nwithout = [\"kprobe\"]", 2, "observe.without[0]", "one of btf"),
        ("[observe]\npressure_io = 101", 2, "observe.pressure_io", "from 0 to 100"),
        ("[metrics]\nlisten = [\"9464\"]", 2, "metrics.listen[0]", "an IP address with a port"),
        ("[metrics]\nlisten = [\"0.0.0.0:9464\"]", 2, "metrics.listen[0]", "or metrics.tls = true"),
        ("[metrics]\nlisten = [\"[::1]:1\", \"[::1]:1\"]", 2, "metrics.listen[1]", "a second time"),
        (
            "[metrics]\ntls = true\nlisten = [\"0.0.0.0:9464\"]",
            2,
            "metrics.tls",
            "needs tls_certificate, tls_key, tls_c",
        ),
        ("[metrics]\ntls = true\ninsecure = true", 3, "metrics.insecure", "exclude each other"),
        ("[api\nsocket_mode = \"0660\"", 1, "", "TOML"),
        ("[api]\nsocket_group = \"a\"\nsocket_group = \"b\"", 3, "", "duplicate"),
    ];
    for (text, line, field, words) in cases {
        let problems = load_text(text).expect_err(text);
        assert!(
            problems.iter().any(|p| p.line == Some(*line) && p.field == *field && p.message.contains(words)),
            "{text}\n→ {problems:#?}\nexpected line {line}, field {field}, words {words}"
        );
    }
}

#[test]
fn all_problems_are_told_at_once_in_order() {
    let problems = load_text(
        "instance = \"X\"\n[network]\nmtu = -1\nmut = 2\n[pods]\npool_size = 100\n[[images.registry]]\nhost = 1\n",
    )
    .unwrap_err();
    let lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [Some(1), Some(3), Some(4), Some(6), Some(8)], "{problems:#?}");
    assert_eq!(problems[3].column, Some(13));
    let shown = problems[1].to_string();
    assert!(
        shown.ends_with("agentd.toml:3:7: network.mtu: found the integer -1; expected a whole number from 0 to 65535"),
        "{shown}"
    );
}

#[test]
fn problems_before_a_syntax_error_are_told_too() {
    let problems = load_text("[network]\nmtu = 1\nbridge = = 3\nzzz = 1\n").unwrap_err();
    assert!(problems.iter().any(|p| p.field == "network.mtu" && p.line == Some(2)), "{problems:#?}");
    assert!(problems.iter().any(|p| p.line == Some(3)), "{problems:#?}");
    assert!(problems.iter().all(|p| p.line <= Some(3)), "{problems:#?}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let flags = Flags { config: Some("/nonexistent/agentd.toml".into()), ..Flags::default() };
    let problems = load(&flags, std::iter::empty()).unwrap_err();
    assert!(problems[0].to_string().starts_with("/nonexistent/agentd.toml: cannot be read"), "{problems:?}");
    let flags = Flags { config: Some("/proc".into()), ..Flags::default() };
    assert!(load(&flags, std::iter::empty()).unwrap_err()[0].message.contains("not a regular file"));
    let (folder, flags) = write("");
    std::fs::write(folder.path().join("agentd.toml"), b"\n\xff").unwrap();
    assert!(load(&flags, std::iter::empty()).unwrap_err()[0].message.contains("line 2 is not UTF-8"));
}

#[test]
fn later_sources_override_earlier_ones() {
    let (_folder, mut flags) =
        write("instance = \"one\"\n[network]\nmtu = 1400\nbridge = \"br-a\"\n[pods]\npool_size = 1_0\n");
    flags.set = vec!["network.mtu=1480".to_owned(), "pods.kill_grace_seconds=7".to_owned()];
    flags.instance = Some("three".to_owned());
    let env =
        [("AGENTD_NETWORK_MTU", "1450"), ("AGENTD_NETWORK_BRIDGE", "br-b"), ("AGENTD_INSTANCE", "two"), ("HOME", "/")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let loaded = load(&flags, env.into_iter()).unwrap();
    assert_eq!(loaded.config.network.mtu, 1480);
    assert_eq!(loaded.config.network.bridge.as_deref(), Some("br-b"));
    assert_eq!(loaded.config.pods.pool_size, 10);
    assert!((loaded.config.pods.kill_grace_seconds - 7.0).abs() < f64::EPSILON);
    assert_eq!(loaded.config.instance, "three");
    assert_eq!(loaded.config.paths.state, PathBuf::from("/var/lib/three"));
    assert_eq!(loaded.sources["network.mtu"], Origin::Flag("--set network.mtu".to_owned()));
    assert_eq!(loaded.sources["network.bridge"], Origin::Environment("AGENTD_NETWORK_BRIDGE".to_owned()));
    assert!(matches!(loaded.sources["pods.pool_size"], Origin::File { line: 6, column: 1, .. }));
    assert_eq!(loaded.sources["instance"], Origin::Flag("--instance".to_owned()));
}

#[test]
fn environment_and_flags_are_judged_as_files_are() {
    let problems = load_env(&[
        ("AGENTD_NETWORK_MTU", "many"),
        ("AGENTD_NETWORK_MUT", "1500"),
        ("AGENTD_IMAGES_KEEP_BLOBS", "yes"),
        ("AGENTD_OTHER", "ignored"),
    ])
    .unwrap_err();
    let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 3, "{shown:#?}");
    assert!(
        shown.iter().any(|p| p.starts_with("environment AGENTD_NETWORK_MTU: network.mtu: found 'many'")),
        "{shown:#?}"
    );
    assert!(shown.iter().any(|p| p.contains("did you mean AGENTD_NETWORK_MTU")), "{shown:#?}");

    let problems =
        load_set(&["network.mtu", "netwrok.mtu=1", "network.mtv=1", "pods.pool_size=-1", "hostnam=x"]).unwrap_err();
    assert_eq!(problems.len(), 5, "{problems:#?}");
    assert!(problems.iter().any(|p| p.message.contains("did you mean 'network'")), "{problems:#?}");

    let loaded = load_set(&[
        "network.dns_servers=192.0.2.1, 2001:db8::1",
        "network.aliases=dcos,mesos",
        "host_files.etc=[\"hosts\"]",
        "images.registry=[{host=\"r.example:5000\", insecure=true}]",
    ])
    .unwrap();
    assert_eq!(loaded.config.network.dns_servers, ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(loaded.config.network.aliases, ["dcos", "mesos"]);
    assert_eq!(loaded.config.host_files.etc, [PathBuf::from("hosts")]);
    assert!(loaded.config.images.registries[0].insecure);
}

#[test]
fn printed_configuration_reads_back_to_the_same() {
    let loaded = load_text(
        "hostname = \"h1\"\n[resources]\ncpus = 8\n[network]\naliases = [\"dcos\"]\n[logs]\nformat = \"json\"\n\
         [[images.registry]]\nhost = \"r.example\"\nmirrors = [\"m.example:5000\"]\nca = \"/etc/ca.pem\"\n",
    )
    .unwrap();
    let printed = effective(&loaded);
    assert!(printed.contains("agentd.toml:1\n"), "{printed}");
    assert!(printed.contains("mtu = 0  # default"), "{printed}");
    let again = load_text(&printed).unwrap_or_else(|problems| panic!("{printed}\n{problems:#?}"));
    assert_eq!(again.config, loaded.config);
}

#[test]
fn listeners_with_tls_or_on_loopback_pass() {
    let tls = "tls_certificate = \"/c\"\ntls_key = \"/k\"\ntls_client_ca = \"/a\"\n";
    let loaded = load_text(&format!("[api]\nlisten = [\"0.0.0.0:8443\", \"[::1]:8443\"]\n{tls}")).unwrap();
    let addresses: Vec<String> = loaded.config.api.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["0.0.0.0:8443", "[::1]:8443"]);
    load_text("[api]\ninsecure = true\nlisten = [\"127.0.0.1:8080\", \"[::1]:8080\"]").unwrap();
    load_text(&format!("[api]\n{tls}")).unwrap();
    assert_eq!(load_set(&["api.listen=127.0.0.1:8080", "api.insecure=true"]).unwrap().config.api.listen.len(), 1);
}

#[test]
fn dev_keeps_everything_below_its_folder() {
    let folder = tempfile::Builder::new().prefix("agentd-test-dev-").tempdir().unwrap();
    let dev = folder.path().to_path_buf();
    let flags = Flags { dev: Some(dev.clone()), ..Flags::default() };
    let loaded = load(&flags, std::iter::empty()).unwrap();
    let paths = &loaded.config.paths;
    for path in [&paths.run, &paths.state, &paths.socket, &paths.secrets, &paths.seccomp, &paths.cni_config] {
        assert!(path.starts_with(&dev), "{path:?}");
    }
    assert!(keys::is_instance(&loaded.config.instance), "{}", loaded.config.instance);
    assert_eq!(loaded.sources["paths.run"], Origin::Dev);
    assert_eq!(loaded.sources["network.mtu"], Origin::Default);
    let again = load(&flags, std::iter::empty()).unwrap();
    assert_eq!(again.config, loaded.config);
    let named = Flags { instance: Some("mine".to_owned()), ..flags };
    assert_eq!(load(&named, std::iter::empty()).unwrap().config.instance, "mine");

    std::fs::write(dev.join("agentd.toml"), "[pods]\npool_size = 0\n").unwrap();
    let loaded = load(&named, std::iter::empty()).unwrap();
    assert_eq!(loaded.config.pods.pool_size, 0);
    assert_eq!(loaded.file, Some(dev.join("agentd.toml")));
}

#[test]
fn too_long_a_dev_folder_is_refused_with_the_cure() {
    let flags = Flags { dev: Some(format!("/tmp/{}", "d".repeat(110)).into()), ..Flags::default() };
    let problems = load(&flags, std::iter::empty()).unwrap_err();
    let problem = problems.iter().find(|p| p.field == "paths.socket").unwrap();
    assert!(problem.message.contains("127 bytes") && problem.message.contains("shorter --dev"), "{problem}");
    assert!(load(&Flags { dev: Some("/".into()), ..Flags::default() }, std::iter::empty()).is_err());
}

#[test]
fn instances_do_not_share_names() {
    let one = Config::defaults("agentd", None);
    for name in ["a", "blue", "a-name-of-twenty-cha"] {
        let two =
            load_set(&[&format!("instance={name}")]).unwrap_or_else(|problems| panic!("{name}: {problems:#?}")).config;
        assert_ne!(one.network.port_range, two.network.port_range);
        assert_ne!(one.paths.run, two.paths.run);
        assert_ne!(one.paths.state, two.paths.state);
        assert_ne!(one.paths.socket, two.paths.socket);
    }
}

#[test]
fn names_of_variables_are_unambiguous() {
    let mut names: Vec<String> = keys().map(Key::variable).collect();
    names.extend(["AGENTD_CONFIG".to_owned(), "AGENTD_DEV".to_owned()]);
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn the_file_to_install_has_every_key_with_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/agentd.toml");
    let file = std::fs::read_to_string(path).unwrap();
    let mut section = "";
    let mut written = std::collections::BTreeMap::new();
    for line in file.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(heading) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = heading;
        } else if let Some((name, value)) = line.split_once(" = ").filter(|(name, _)| !name.contains(' ')) {
            written.insert((section, name), value);
        }
    }
    let defaults = Config::defaults(DEFAULT_INSTANCE, None);
    for key in keys().filter(|key| key.name != "registry") {
        let value = written.remove(&(key.table, key.name));
        let value = value.unwrap_or_else(|| panic!("packaging/agentd.toml does not have {}", key.field()));
        // long lists are cut short there
        if let Some(default) = print::value(key, &defaults).filter(|default| default.len() < 60) {
            assert_eq!(value, default, "{}", key.field());
        }
    }
    written.retain(|(section, _), _| *section != "[images.registry]");
    assert!(written.is_empty(), "packaging/agentd.toml has what there is not: {:?}", written.keys());
}

#[test]
fn every_key_is_documented_with_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let docs = std::fs::read_to_string(path).unwrap();
    let defaults = Config::defaults(DEFAULT_INSTANCE, None);
    let mut section = "";
    let mut documented = std::collections::BTreeMap::new();
    for line in docs.lines() {
        if let Some(heading) = line.strip_prefix("## `[").and_then(|rest| rest.strip_suffix("]`")) {
            section = heading;
        } else if let Some((name, rest)) = line.strip_prefix("| `").and_then(|rest| rest.split_once("` | ")) {
            documented.insert((section.to_owned(), name.to_owned()), rest.to_owned());
        }
    }
    for key in keys() {
        let row = documented.get(&(key.table.to_owned(), key.name.to_owned()));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md does not describe {}", key.field()));
        let default = print::value(key, &defaults);
        // Long lists are described in words.
        if let Some(default) = default.filter(|default| default.len() < 60) {
            assert!(
                row.starts_with(&format!("`{default}` |")),
                "{}: the default is {default}, documented as {row}",
                key.field()
            );
        }
    }
    for name in keys::REGISTRY_KEYS {
        assert!(documented.contains_key(&("[images.registry]".to_owned(), name.to_owned())), "{name}");
    }
    for (section, name) in documented.keys() {
        let known = find(section, name).is_some() || section == "[images.registry]";
        assert!(known, "docs/configuration.md describes {section}.{name}, which does not exist");
    }
}
