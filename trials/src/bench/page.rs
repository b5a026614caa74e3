//! The figures as one page with plots: HTML and SVG in one file, nothing fetched from anywhere.

use std::fmt::Write;

use crate::bench::figures::{Act, Row, Spread};
use crate::bench::limit::Limits;
use crate::bench::series::Bench;
use crate::bench::table::{HEAD, machine, words};

const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:110em}table{border-collapse:collapse;margin:.5em 0}\
td,th{border:1px solid #ccc;padding:.2em .5em;text-align:right}td:first-child,th:first-child{text-align:left}\
svg text{font:12px sans-serif}.hdcr{fill:#2a6f97}.criu{fill:#c9a227}.spread{stroke:#333;stroke-width:1.5}";

/// A plot: its title, the act it is about, and what is drawn.
type Plot = (&'static str, Act, fn(&Row) -> Option<Spread>);

const PLOTS: [Plot; 8] = [
    ("Stop of the program, as the tool tells it (checkpoint, tmpfs)", Act::Checkpoint, |row| row.stopped_ms),
    ("Longest gap that the program saw (checkpoint, tmpfs)", Act::Checkpoint, |row| row.gap_ms),
    ("Wall time of a checkpoint, tmpfs", Act::Checkpoint, |row| row.wall_ms),
    ("Wall time of a checkpoint, tmpfs, image recycled", Act::Recycled, |row| row.wall_ms),
    ("Wall time of a checkpoint, disk, durable, image recycled", Act::DurableRecycled, |row| row.wall_ms),
    ("Wall time of a checkpoint, disk, durable", Act::Durable, |row| row.wall_ms),
    ("Restore: first instruction", Act::Restore, |row| row.first_ms),
    ("Restore: all pages in", Act::Restore, |row| row.filled_ms),
];

/// The whole page.
pub(super) fn html(bench: &Bench) -> String {
    let mut page = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>HDCR beside CRIU</title><style>{STYLE}</style>\
         <h1>HDCR beside CRIU</h1><p>{}</p><p>{}</p><table><tr><th>limit of the machine<th>GiB/s",
        escape(&machine(bench)),
        escape(bench.note)
    );
    for (name, speed) in bench.limits.iter().flat_map(Limits::named) {
        draw(&mut page, format_args!("<tr><td>{name}<td>{speed:.2}"));
    }
    page.push_str("</table><p>Bars: medians, on a logarithmic scale; lines: least to most.</p>");
    for (title, act, get) in PLOTS {
        page.push_str(&plot(bench, title, act, get));
    }
    for act in Act::ALL {
        page.push_str(&rows(bench, act));
    }
    for (what, why) in &bench.failures {
        draw(&mut page, format_args!("<p>Not measured: {}: {}</p>", escape(what), escape(why)));
    }
    page
}

fn rows(bench: &Bench, act: Act) -> String {
    let mut table = format!("<h2>{}</h2><table><tr><th>program", act.name());
    for name in HEAD.iter().skip(1) {
        draw(&mut table, format_args!("<th>{name}"));
    }
    for row in bench.rows.iter().filter(|row| row.act == act) {
        draw(&mut table, format_args!("<tr><td>{}", escape(row.subject)));
        for word in words(row).iter().skip(1) {
            draw(&mut table, format_args!("<td>{}", escape(word)));
        }
    }
    table + "</table>"
}

const LEFT: f64 = 230.0;
const WIDTH: f64 = 620.0;

/// Bars, tool by tool below one another, grouped by program.
fn plot(bench: &Bench, title: &str, act: Act, get: fn(&Row) -> Option<Spread>) -> String {
    let rows = bench.rows.iter().filter(|row| row.act == act);
    let found: Vec<(&Row, Spread)> = rows.filter_map(|row| Some((row, get(row)?))).collect();
    let least = found.iter().map(|(_, spread)| spread.least).fold(f64::INFINITY, f64::min);
    let most = found.iter().map(|(_, spread)| spread.most).fold(0.0, f64::max);
    if found.is_empty() || most <= 0.0 {
        return String::new();
    }
    // Decades around all values.
    let from = (least.max(0.01) * 0.9).log10().floor();
    let to = most.log10().ceil().max(from + 1.0);
    let at = |ms: f64| LEFT + (ms.max(0.01).log10() - from).max(0.0) / (to - from) * WIDTH;
    let mut svg = String::new();
    let (mut y, mut subject) = (20.0, "");
    for (row, spread) in &found {
        if row.subject != subject {
            subject = row.subject;
            y += 8.0;
            draw(&mut svg, format_args!("<text x=\"4\" y=\"{}\">{}</text>", y + 12.0, escape(subject)));
        }
        let middle = y + 7.0;
        draw(
            &mut svg,
            format_args!(
                "<rect class=\"{}\" x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"14\"/>\
                 <line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{} {:.1} ms</text>",
                row.tool,
                (at(spread.median) - LEFT).max(1.0),
                at(spread.least),
                at(spread.most),
                at(spread.most) + 6.0,
                y + 12.0,
                row.tool,
                spread.median
            ),
        );
        y += 17.0;
    }
    let mut decade = from;
    while decade <= to {
        let (x, ms) = (at(10_f64.powf(decade)), 10_f64.powf(decade));
        draw(
            &mut svg,
            format_args!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"20\" y2=\"{y}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"14\">{ms} ms</text>"
            ),
        );
        decade += 1.0;
    }
    format!("<h2>{title}</h2><svg width=\"1000\" height=\"{}\">{svg}</svg>", y + 10.0)
}

/// Writing to a string cannot fail.
fn draw(svg: &mut String, shape: std::fmt::Arguments<'_>) {
    svg.write_fmt(shape).ok();
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_no_markup() {
        assert_eq!(escape("a<b>&"), "a&lt;b&gt;&amp;");
    }
}
