//! Formats of strings. Each answers what was expected, with the cure, where the text does not have it; the caller says
//! where and what was found. That no text holds a NUL byte is seen to before.

use std::net::IpAddr;

/// Judges a text.
pub(super) type Format = fn(&str) -> Result<(), String>;

/// How many characters of an outside text are repeated in a message.
pub(super) const SHOWN: usize = 64;

/// The text in quotes, control characters escaped, cut to what a line can hold.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn expect(holds: bool, expected: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(expected.to_owned()) }
}

/// Whether the path is made of segments none of which leads up.
fn stays_below(path: &str) -> bool {
    !path.split('/').any(|segment| segment == "..")
}

/// Any text.
#[expect(clippy::unnecessary_wraps, reason = "it is a Format")]
pub(super) fn any(_: &str) -> Result<(), String> {
    Ok(())
}

/// Text of at least one character.
pub(super) fn filled(text: &str) -> Result<(), String> {
    expect(!text.is_empty(), "at least one character")
}

/// Marathon's names of containers, volumes, endpoints and networks.
pub(super) fn name(text: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let holds = matches!(bytes.len(), 1..=63)
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| inner(*byte))
        && bytes.last().is_some_and(|byte| inner(*byte));
    expect(holds, "1 to 63 lower-case letters, digits and dashes, with no dash at either end")
}

/// Id of a pod. Its characters stand for themselves in URLs and in file names.
pub(super) fn pod_id(text: &str) -> Result<(), String> {
    let segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let holds = text.len() <= 255 && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment));
    expect(
        holds,
        "an absolute path such as \"/app\": segments of letters, digits, `-`, `_` and `.`, none of them empty, 255 \
         characters at most",
    )
}

/// RFC 3339 time.
pub(super) fn date_time(text: &str) -> Result<(), String> {
    expect(
        text.parse::<jiff::Timestamp>().is_ok(),
        "an RFC 3339 time such as \"2026-01-31T12:00:00Z\"; or leave it out",
    )
}

/// Name of an environment variable.
pub(super) fn env_name(text: &str) -> Result<(), String> {
    let mut bytes = text.bytes();
    let holds = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    expect(holds, "letters, digits and `_`, with no digit first")
}

/// A user: a name, or `uid[:gid]`.
pub(super) fn user(text: &str) -> Result<(), String> {
    // The largest number means "no change" to chown and setuid.
    let number = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u32>().is_ok_and(|id| id != u32::MAX)
    };
    let (id, group) = text.split_once(':').map_or((text, None), |(id, group)| (id, Some(group)));
    let named = group.is_none()
        && text.len() <= 255
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-$".contains(&byte));
    expect(named || (number(id) && group.is_none_or(number)), "the name of a user, or a number `uid` or `uid:gid`")
}

/// An absolute path that does not lead up.
pub(super) fn absolute_path(text: &str) -> Result<(), String> {
    expect(
        text.len() <= 1024 && text.starts_with('/') && stays_below(text),
        "an absolute path of at most 1024 bytes without `..`",
    )
}

/// A relative path that does not lead up and names something.
pub(super) fn relative_path(text: &str) -> Result<(), String> {
    expect(
        text.len() <= 1024 && !text.starts_with('/') && stays_below(text) && segments(text).next().is_some(),
        "a relative path of 1 to 1024 bytes without `..`",
    )
}

/// The segments of a path that mean something.
pub(super) fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !matches!(*segment, "" | "."))
}

/// Where a volume is mounted.
pub(super) fn mount_path(text: &str) -> Result<(), String> {
    expect(
        matches!(text.len(), 1..=1024) && stays_below(text),
        "a path of 1 to 1024 bytes without `..`, absolute or below the sandbox",
    )?;
    let first = segments(text).next();
    if text.starts_with('/') {
        expect(first.is_some(), "a path below `/`, which is the container's own")?;
        expect(
            !matches!(first, Some("proc" | "sys" | "dev")),
            "a path outside of /proc, /sys and /dev, which agentd makes; mount it elsewhere",
        )
    } else {
        expect(first.is_some(), "a path below the sandbox, which is the container's own")
    }
}

/// Name of a file in one folder.
pub(super) fn file_name(text: &str) -> Result<(), String> {
    expect(
        !matches!(text, "" | "." | "..") && !text.contains('/') && text.len() <= 255,
        "the name of a file, without a slash",
    )
}

/// Reference of an image.
pub(super) fn image_id(text: &str) -> Result<(), String> {
    expect(
        matches!(text.chars().count(), 1..=1024) && !text.contains(char::is_control),
        "a reference of 1 to 1024 characters such as \"nginx:1.27\"",
    )
}

/// A local OCI layout: `/path[:tag]`.
pub(super) fn layout_path(text: &str) -> Result<(), String> {
    image_id(text)?;
    absolute_path(text).map_err(|_| "the absolute path of an OCI layout folder, `/path` or `/path:tag`".to_owned())
}

/// Where an artifact comes from.
pub(super) fn artifact_uri(text: &str) -> Result<(), String> {
    let expected = "an absolute URI of at most 1024 characters with the scheme http, https or file";
    let scheme_end = text.find("://").ok_or_else(|| expected.to_owned())?;
    let (scheme, rest) = (&text[..scheme_end], &text[scheme_end + 3..]);
    let plain = text.chars().count() <= 1024 && !text.contains(|each: char| each.is_control() || each == ' ');
    let rooted = match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => !rest.is_empty() && !rest.starts_with(['/', '?', '#', ':']),
        "file" => rest.starts_with('/') && stays_below(rest),
        _ => false,
    };
    expect(plain && rooted, expected)
}

/// Whether a URI of that format ends with the name of a file, so that it need not be given.
pub(super) fn names_a_file(uri: &str) -> bool {
    let path = uri.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    path.rsplit_once('/').is_some_and(|(_, name)| file_name(name).is_ok())
}

/// Path of a URL.
pub(super) fn url_path(text: &str) -> Result<(), String> {
    expect(
        text.starts_with('/') && text.len() <= 1024 && !text.contains(|each: char| each.is_control() || each == ' '),
        "a path that begins with `/`, without spaces, of at most 1024 bytes",
    )
}

/// A block device.
pub(super) fn device(text: &str) -> Result<(), String> {
    let below = text.strip_prefix("/dev/").is_some_and(|rest| segments(rest).next().is_some());
    expect(below && text.len() <= 1024 && stays_below(text), "the path of a device below /dev, such as \"/dev/vda\"")
}

/// Address of a name server.
pub(super) fn ip(text: &str) -> Result<(), String> {
    expect(text.parse::<IpAddr>().is_ok(), "an IPv4 or IPv6 address")
}

/// A DNS search domain.
pub(super) fn domain(text: &str) -> Result<(), String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    expect(plain && matches!(text.len(), 1..=253), "a domain of 1 to 253 letters, digits, `-`, `_` and `.`")
}

/// A resolver option, as in resolv.conf.
pub(super) fn resolver_option(text: &str) -> Result<(), String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_:.".contains(&byte));
    expect(plain && matches!(text.len(), 1..=64), "one option as in resolv.conf, such as \"ndots:2\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_takes_and_refuses() {
        let cases: &[(Format, &[&str], &[&str])] = &[
            (name, &["a", "a-b", "0"], &["", "-a", "a-", "A", "a_b", "ä"]),
            (pod_id, &["/app", "/a/b.c/d_E-1"], &["", "app", "/", "/a//b", "/a/", "/../b", "/a b", "/a?"]),
            (env_name, &["A", "_a1"], &["", "1A", "A-B", "A=B"]),
            (user, &["root", "_apt", "0", "1000:100"], &["", ":", "1000:", "a:b", "1x", "4294967295", "a b", "-1"]),
            (absolute_path, &["/", "/a..b"], &["", "a", "/a/../b", "/.."]),
            (relative_path, &["a", "./a/b", "..."], &["", ".", "/a", "a/..", "../a"]),
            (
                mount_path,
                &["/data", "data", "/processes"],
                &["", "/", "//", "/.", ".", "/proc", "//sys/x", "/./dev", "/a/.."],
            ),
            (file_name, &["a", "..."], &["", ".", "..", "a/b"]),
            (
                artifact_uri,
                &["http://h/x", "HTTPS://h:1/x", "file:///x"],
                &["", "ftp://h/x", "http:///x", "file://x", "file:///../x", "h/x", "http://h/a b"],
            ),
            (url_path, &["/", "/a?b"], &["", "a", "/a b", "/a\r\nHost: b"]),
            (device, &["/dev/vda", "/dev/disk/by-id/x"], &["", "/dev/", "/dev", "vda", "/dev/../etc", "/device/x"]),
            (ip, &["127.0.0.1", "::1"], &["", "localhost", "1.2.3"]),
            (domain, &["a.b", "example.org."], &["", "a b", "a\nnameserver 1.1.1.1"]),
            (resolver_option, &["ndots:2", "edns0"], &["", "ndots: 2", "a\nb"]),
            (date_time, &["2026-01-31T12:00:00Z", "2026-01-31T12:00:00+01:00"], &["", "yesterday", "2026-01-31"]),
        ];
        for (format, good, bad) in cases {
            for text in *good {
                assert_eq!(format(text), Ok(()), "{text:?}");
            }
            for text in *bad {
                assert!(format(text).is_err(), "{text:?} should be refused");
            }
        }
    }

    #[test]
    fn lengths_are_bounded() {
        for (format, most) in [(name as Format, 63), (image_id, 1024), (file_name, 255)] {
            assert_eq!(format(&"a".repeat(most)), Ok(()));
            assert!(format(&"a".repeat(most + 1)).is_err());
        }
        for (format, prefix, most) in
            [(pod_id as Format, "/", 255), (mount_path, "/", 1024), (artifact_uri, "http://", 1024)]
        {
            assert_eq!(format(&format!("{prefix}{}", "a".repeat(most - prefix.len()))), Ok(()));
            assert!(format(&format!("{prefix}{}", "a".repeat(most + 1 - prefix.len()))).is_err());
        }
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted(&"ä".repeat(100)), format!("\"{}\"…", "ä".repeat(SHOWN)));
    }
}
