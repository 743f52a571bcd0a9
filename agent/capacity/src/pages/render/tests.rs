use jiff::Timestamp;

use super::{Live, escaped, file, live, policy, shortened};
use crate::{
    output::{Column, Table},
    pages::model::{
        Axis, Bars, Curve, Distribution, Drawing, Fact, Heat, Lines, Mark, Page, Part, Plot, Range, Role,
        Section, Series, Unit, cumulative,
    },
};

/// A name as somebody would choose it who wants to be seen.
const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"'&\u{202e}\u{2028}\u{1b}[2J<!--";

fn section(heading: &str, drawing: Drawing, table: Table) -> Section {
    Section {
        heading: heading.to_owned(),
        text: vec![
            "What it says, and what it hides, in a sentence or two that an admin reads once.".to_owned(),
        ],
        plot: Some(Plot {
            caption: format!("{heading}: what is drawn, told to who doesn't see it."),
            drawing,
        }),
        table,
        ..Section::default()
    }
}

fn table(rows: &[[&str; 3]]) -> Table {
    Table {
        title: String::new(),
        columns: vec![Column::text("NAME"), Column::number("GPUS"), Column::number("USD PER HOUR")],
        rows: rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect(),
    }
}

fn wave(at: f64) -> f64 {
    (632.0 + 160.0 * (at / 13_750.0).sin() + 60.0 * (at / 5_000.0).sin() + 40.0 * (at / 777.0).cos()).round()
}

fn lines() -> Drawing {
    let times = || (0..31 * 1440).map(|minute| 1_588_291_200.0 + f64::from(minute) * 60.0);
    let hole = |at: f64| (12_000.0..13_566.0).contains(&((at - 1_588_291_200.0) / 60.0));
    let of = |scale: f64| times().map(|at| (at, (!hole(at)).then(|| wave(at) * scale))).collect::<Vec<_>>();
    Drawing::Lines(Lines {
        x: Axis::new("Time", Unit::Time),
        y: Axis::new("GPUs", Unit::Gpus),
        series: vec![
            Series::new("demanded (running and waiting)", Role::Demand, of(1.0)),
            Series::new("running", Role::Used, of(0.9)),
            Series::new(
                "owned",
                Role::Capacity,
                vec![(1_588_291_200.0, Some(856.0)), (1_590_969_540.0, Some(856.0))],
            )
            .stepped(),
        ],
    })
}

fn curve() -> Drawing {
    let choices = || (0..=95).map(|n| f64::from(n) * 10.0);
    let rented = |n: f64| 1897.0 * (-(n / 420.0).powi(3)).exp();
    let total = choices().map(|n| (n, Some(n + rented(n)))).collect();
    let mut total = Series::new("total", Role::Total, total);
    total.band = choices().map(|n| (n, n + rented(n) * 0.85, n + rented(n) * 1.2)).collect();
    Drawing::Curve(Curve {
        x: Axis::new("GPUs owned", Unit::Gpus),
        y: Axis::money("Cost per hour", "USD"),
        series: vec![
            total,
            Series::new("owned", Role::Owned, choices().map(|n| (n, Some(n))).collect()),
            Series::new("rented", Role::Rented, choices().map(|n| (n, Some(rented(n)))).collect()),
        ],
        flat: Some(Range { label: "600 to 690 cost within 1 %".to_owned(), from: 600.0, to: 690.0 }),
        interval: Some(Range { label: "95 %: 580 to 757".to_owned(), from: 580.0, to: 757.0 }),
        marks: vec![
            Mark { label: "best: 640 GPUs".to_owned(), at: 640.0, main: true },
            Mark { label: "owned today: 856".to_owned(), at: 856.0, main: false },
        ],
    })
}

fn distribution() -> Drawing {
    let waits = |scale: f64| -> Vec<f64> {
        (0..5000)
            .map(|job| if job % 3 == 0 { 0.0 } else { scale * (f64::from(job % 997) / 100.0).exp() })
            .collect()
    };
    Drawing::Distribution(Distribution {
        x: Axis::new("Wait", Unit::Duration),
        y: Axis::new("Jobs that have started", Unit::Percent),
        series: vec![
            Series::new("all wait", Role::Owned, cumulative(&waits(1.0))),
            Series::new("short wait, 300 s", Role::Rented, cumulative(&waits(0.05))),
        ],
        marks: vec![
            Mark { label: "median 45 s".to_owned(), at: 45.0, main: false },
            Mark { label: "p95 2.4 h".to_owned(), at: 8800.0, main: true },
            Mark { label: "p99 4.2 h".to_owned(), at: 15_200.0, main: false },
        ],
    })
}

fn heat() -> Drawing {
    let heat = Heat {
        x: Axis::new("Time", Unit::Time),
        column_names: Vec::new(),
        columns: (0..168).map(|hour| 1_588_291_200.0 + f64::from(hour) * 3600.0).collect(),
        rows: (0..24)
            .map(
                |row| {
                    if row == 23 { HOSTILE.to_owned() } else { format!("gpu-node-{row:03}.rack-7.example") }
                },
            )
            .collect(),
        value: Axis::new("Free but not usable", Unit::Percent),
        cells: (0..24)
            .map(|row| {
                (0..168)
                    .map(|hour| {
                        (hour / 20 != row / 6).then(|| {
                            (f64::from(row) * 4.0 + 30.0 * (f64::from(hour) / 9.0).sin()).clamp(0.0, 100.0)
                        })
                    })
                    .collect()
            })
            .collect(),
    };
    Drawing::Heat(heat)
}

fn bars() -> Drawing {
    Drawing::Bars(Bars {
        value: Axis::money("Cost in May", "USD"),
        names: ["vision", "nlp", HOSTILE, "search-ranking-and-recommendation-experiments", "default"]
            .map(str::to_owned)
            .to_vec(),
        parts: vec![
            Part {
                name: "owned".to_owned(),
                role: Role::Owned,
                values: vec![120_400.0, 80_000.0, 41_000.0, 9_000.0, 800.0],
            },
            Part {
                name: "rented".to_owned(),
                role: Role::Rented,
                values: vec![20_000.0, 44_000.0, 1_000.0, 22_000.0, 0.0],
            },
            Part {
                name: "held but idle".to_owned(),
                role: Role::Idle,
                values: vec![9_000.0, 4_000.0, 11_000.0, 2_000.0, 400.0],
            },
        ],
    })
}

fn pools() -> Drawing {
    let part =
        |name: &str, role, values: [f64; 2]| Part { name: name.to_owned(), role, values: values.to_vec() };
    Drawing::Bars(Bars {
        value: Axis::new("GPUs", Unit::Gpus),
        names: vec!["nvidia.com/gpu A100".to_owned(), "virtual-1".to_owned()],
        parts: vec![
            part("used", Role::Used, [512.0, 20.0]),
            part("held but idle", Role::Idle, [96.0, 0.0]),
            part("stranded", Role::Stranded, [120.0, 0.0]),
            part("free", Role::Free, [128.0, 80.0]),
        ],
    })
}

fn example() -> Page {
    let rows = [["vision", "412", "1,204.50"], ["nlp", "310", "840.00"], [HOSTILE, "12", "31.20"]];
    Page {
        title: "Optimisation".to_owned(),
        subtitle: format!("helios-earth.csv.gz · 31 days, 44,640 samples · {HOSTILE}"),
        generated_at: "2026-11-22T08:00:00Z".parse::<Timestamp>().unwrap(),
        facts: vec![
            Fact::new("Own", "640 GPUs", "80 machines of 8; 856 today"),
            Fact::new("It costs", "769.60 USD/h", "10 % less than today"),
            Fact::new("Break-even", "3.00×", "rented over owned, per GPU-hour"),
            Fact::new("Regret", "13 %", "more than the best on later data").alarming(true),
        ],
        warnings: vec![
            "A hole of 1,566 minutes (9 May 22:10 to 11 May 00:16) was left out.".to_owned(),
            format!("Demand drifts by 12 % a month. {HOSTILE}"),
        ],
        sections: vec![
            section("Demand against capacity", lines(), table(&rows)),
            section("Cost by GPUs owned", curve(), table(&rows)),
            section("Waiting times", distribution(), table(&rows)),
            section("Fragmentation by node", heat(), table(&rows)),
            section("Showback", bars(), table(&rows)),
            section("Pools", pools(), table(&rows)),
            Section { heading: "Pods that wait".to_owned(), table: table(&rows), ..Section::default() },
        ],
    }
}

#[test]
fn text_stays_text() {
    assert_eq!(
        escaped(HOSTILE),
        "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;\\u{202e}\\u{2028}\\u{1b}[2J&lt;!--"
    );
    let html = file(&example());
    // The library has these characters in strings of its own.
    let own = html.replace(super::LIBRARY, "");
    for part in ["<img", "onerror=alert(1)>\"", "\u{202e}", "\u{2028}", "\u{1b}"] {
        assert!(!own.contains(part), "{part:?} came through");
    }
    // Two scripts that run, and one of data for each plot.
    assert_eq!(html.matches("<script").count(), 2 + 6);
    assert_eq!(html.matches("</script>").count(), 2 + 6);
}

#[test]
fn embedded_values_are_the_plots() {
    let html = file(&example());
    let mut plots = 0;
    for part in html.split("<script type=\"application/json\">").skip(1) {
        let (json, _) = part.split_once("</script>").unwrap();
        let plot: serde_json::Value = serde_json::from_str(json).unwrap();
        assert!(plot["caption"].is_string());
        plots += 1;
    }
    assert_eq!(plots, 6);
}

#[test]
fn nothing_is_asked_of_a_network() {
    let html = file(&example());
    let (before, rest) = html.split_once("<script>").unwrap();
    let outside =
        |text: &str| text.contains("src=\"") || text.contains("url(") || text.contains("href=\"http");
    assert!(!outside(before) && !outside(rest.split_once("</main>").map_or("", |(_, end)| end)));
    assert!(html.contains(&policy(false)) && !policy(false).contains("connect-src"));
    let live =
        live(&example(), &Live { refresh_s: 10, links: vec![("/report".to_owned(), "Report".to_owned())] });
    assert!(live.contains(&policy(true)) && live.contains("href=\"/report\""));
}

/// Red, green and blue in linear light.
type Light = [f64; 3];

fn light(hex: &str) -> Light {
    [1, 3, 5].map(|at| {
        let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
        if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    })
}

/// As who lacks the middle cones sees it (Viénot, Brettel and Mollon, 1999).
fn deuteranopia([red, green, blue]: Light) -> Light {
    let yellow = 0.292_75 * red + 0.707_25 * green;
    [yellow, yellow, -0.022_34 * red + 0.022_34 * green + blue].map(|value| value.clamp(0.0, 1.0))
}

/// WCAG's contrast, which sees grey alone.
fn contrast(one: Light, other: Light) -> f64 {
    let [one, other] =
        [one, other].map(|[red, green, blue]| 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05);
    one.max(other) / one.min(other)
}

/// The colours of a name, light and dark.
#[test]
fn words_that_nobody_reads_are_cut() {
    let name = "n".repeat(200);
    let cut = shortened(&format!("{name} waits")).unwrap();
    assert_eq!(cut, format!("{}…{} waits", "n".repeat(42), "n".repeat(21)));
    assert_eq!(
        shortened("what has words is told whole, however long it may be and whoever tells it at what time"),
        None
    );
    assert_eq!(shortened(&"🚀".repeat(70)).unwrap().chars().count(), 64);
}

fn colours(name: &str) -> [Light; 2] {
    let rest = super::STYLE.split(&format!("--{name}: light-dark(")).nth(1).unwrap();
    let (both, _) = rest.split_once(')').unwrap();
    let (bright, dark) = both.split_once(", ").unwrap();
    [light(bright), light(dark)]
}

#[test]
fn all_that_is_drawn_is_seen_in_grey_and_without_green() {
    let drawn = [
        "demand", "owned", "rented", "total", "used", "idle", "stranded", "free", "waiting", "other", "flat",
    ];
    let text = ["ink", "soft", "link", "alarm"];
    for (names, least) in [(&drawn[..], 3.0), (&text[..], 4.5)] {
        for name in names {
            for (colour, ground) in colours(name).into_iter().zip(colours("card")) {
                let seen = contrast(colour, ground);
                let without_green = contrast(deuteranopia(colour), deuteranopia(ground));
                assert!(seen.min(without_green) >= least, "{name}: {seen:.2}, {without_green:.2}");
            }
        }
    }
    // A heat map goes one way: its middle is no darker than its end, and no brighter than its begin.
    for [cold, warm, hot] in [0, 1].map(|mode| ["cold", "warm", "hot"].map(|name| colours(name)[mode])) {
        for sees in [|light: Light| light, deuteranopia] {
            let (cold, warm, hot) = (sees(cold), sees(warm), sees(hot));
            let whole = contrast(cold, hot);
            assert!(contrast(cold, warm) < whole && contrast(warm, hot) < whole && whole > 9.0, "{whole}");
        }
    }
}

/// Parts of one bar touch, and may look alike without colours: each has a pattern of its own, and at most one has none.
#[test]
fn what_touches_differs_by_more_than_colour() {
    let script = super::SCRIPT;
    let look = |role: &str| {
        let line =
            script.lines().find(|line| line.trim_start().starts_with(&format!("{role}: {{ "))).unwrap();
        line.split("pattern: \"").nth(1).map(|rest| rest.split('"').next().unwrap())
    };
    for together in [
        &["used", "idle", "free", "stranded", "waiting"][..],
        &["owned", "rented", "idle"],
        &["owned", "rented", "free"],
        &["stranded", "waiting", "idle", "rented", "demand"],
    ] {
        let mut patterns: Vec<_> = together.iter().map(|role| look(role)).collect();
        patterns.sort_unstable();
        patterns.dedup();
        assert_eq!(patterns.len(), together.len(), "{together:?}");
    }
}
