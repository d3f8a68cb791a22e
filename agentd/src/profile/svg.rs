//! Flame graphs in SVG: each function a box as wide as its share, what calls it below it. Without scripts: a box tells its
//! name and its share when the pointer is on it. Names come from containers, and are escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::gathered::{Gathered, Kind};

/// Width of the picture.
const WIDTH: f64 = 1200.0;
/// Height of a box.
const ROW: usize = 17;
/// Room at the left and right side.
const SIDE: f64 = 10.0;
/// Narrowest box that is drawn.
const NARROWEST: f64 = 0.3;
/// About the width of a letter.
const LETTER: f64 = 7.0;
/// Most rows: what stands higher is left away.
const ROWS: usize = 140;

/// A function below those that it calls.
#[derive(Debug, Default)]
struct Node {
    samples: u64,
    callees: BTreeMap<(String, bool), Node>,
}

impl Node {
    fn depth(&self) -> usize {
        let mut deepest = 0;
        let mut open = vec![(self, 0)];
        while let Some((node, depth)) = open.pop() {
            deepest = deepest.max(depth);
            open.extend(node.callees.values().map(|callee| (callee, depth + 1)));
        }
        deepest
    }
}

/// The flame graph. `title` stands above it.
pub fn draw(gathered: &Gathered, title: &str) -> String {
    let mut root = Node::default();
    for (stack, weight) in gathered.iter() {
        root.samples += weight.samples;
        let mut node = &mut root;
        for frame in stack.take(ROWS) {
            let key = (frame.name.to_string(), frame.file.kind == Kind::Kernel);
            node = node.callees.entry(key).or_default();
            node.samples += weight.samples;
        }
    }
    let height = (root.depth() + 1) * ROW + 60;
    let mut svg = String::with_capacity(64 << 10);
    // writing to a string cannot fail, here and below
    let _ = write!(
        svg,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" \
         height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <style>rect{{stroke:#fff;stroke-width:.5}}g:hover rect{{stroke:#000}}text{{pointer-events:none}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{}\" y=\"22\" text-anchor=\"middle\" font-size=\"15\">{}</text>\n",
        WIDTH / 2.0,
        escape(title)
    );
    if root.samples == 0 {
        let _ = writeln!(svg, "<text x=\"{SIDE}\" y=\"45\">no samples</text>");
    } else {
        boxes(&root, height - 20 - ROW, &mut svg);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Draws every box, the outermost at the bottom.
fn boxes(root: &Node, bottom: usize, svg: &mut String) {
    let scale = (WIDTH - 2.0 * SIDE) / root.samples as f64;
    let all = ("all".to_owned(), false);
    let mut open = vec![(&all, root, 0_u64, 0_usize)];
    while let Some((key, node, from, depth)) = open.pop() {
        let width = node.samples as f64 * scale;
        if width < NARROWEST {
            continue;
        }
        let (x, y) = (SIDE + from as f64 * scale, bottom - depth * ROW);
        let share = node.samples as f64 * 100.0 / root.samples as f64;
        let (name, kernel) = key;
        let _ = write!(
            svg,
            "<g><title>{} ({} samples, {share:.2} %)</title><rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" \
             height=\"{}\" rx=\"1\" fill=\"{}\"/>",
            escape(name),
            node.samples,
            ROW - 1,
            colour(name, *kernel)
        );
        let letters = ((width - 6.0) / LETTER).floor() as usize;
        if letters >= 3 {
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{}\">{}</text>", x + 3.0, y + 12, escape(&cut(name, letters)));
        }
        svg.push_str("</g>\n");
        let mut at = from;
        for (key, callee) in &node.callees {
            open.push((key, callee, at, depth + 1));
            at += callee.samples;
        }
    }
}

/// A name cut to its room.
fn cut(name: &str, room: usize) -> String {
    if name.chars().count() <= room {
        return name.to_owned();
    }
    name.chars().take(room - 2).chain("..".chars()).collect()
}

/// Warm colours for programs, blue for the kernel; the same name has the same colour in each picture.
fn colour(name: &str, kernel: bool) -> String {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let shade = |bits: u32, most: u32| (hash >> bits) % most;
    if kernel {
        format!("rgb({},{},235)", 110 + shade(0, 50), 160 + shade(8, 50))
    } else {
        format!("rgb({},{},{})", 215 + shade(0, 40), 90 + shade(8, 130), 50 + shade(16, 40))
    }
}

/// Text as it may stand in XML, which has no way to write most control characters.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::gathered::Weight;
    use super::super::gathered::tests::{frame, sample};
    use super::*;

    #[test]
    fn boxes_are_as_wide_as_their_share() {
        let svg = draw(&sample(), "a & b");
        assert!(svg.contains("a &amp; b"));
        assert!(svg.contains("<title>hot_a (80 samples, 80.00 %)</title>"), "{svg}");
        assert!(svg.contains("<title>vfs_read (5 samples, 5.00 %)</title>"));
        let width = |name: &str| -> f64 {
            let after = svg.split(&format!("<title>{name} (")).nth(1).unwrap();
            after.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        assert!((width("hot_a") - 0.8 * 1180.0).abs() < 0.2 && (width("main") - 1180.0).abs() < 0.2);
    }

    #[test]
    fn names_cannot_leave_their_place() {
        let mut gathered = Gathered::default();
        let name = "</title><script>alert(1)</script>\u{1}\u{ffff}\"'&";
        gathered.add(&[frame("/bin/app", name, 1)], Weight::of(1, 49));
        let svg = draw(&gathered, name);
        assert!(!svg.contains("<script") && !svg.contains('\u{1}') && !svg.contains('\u{ffff}'));
        assert_eq!(svg.matches("<title>").count(), svg.matches("</title>").count());
    }

    #[test]
    fn no_samples_and_deep_stacks_are_drawn() {
        assert!(draw(&Gathered::default(), "x").contains("no samples"));
        let mut gathered = Gathered::default();
        let deep: Vec<_> = (0..300_u64).map(|n| frame("/bin/app", &format!("f{n}"), n)).collect();
        gathered.add(&deep, Weight::of(1, 49));
        let svg = draw(&gathered, "x");
        assert!(svg.contains("<title>f139 (") && !svg.contains("<title>f140 ("));
    }
}
