use jiff::civil::{Date, date};
use proptest::prelude::*;

use super::{Args, Currency, Kind, Prices, Rates};

const TODAY: Date = date(2026, 11, 22);

fn parsed(text: &str) -> Result<Prices, String> {
    Prices::parse("p.yaml", text.as_bytes(), TODAY).map_err(|error| error.to_string())
}

/// A price file of one entry.
fn entry(lines: &str) -> String {
    format!("prices:\n  x:\n    currency: USD\n    asOf: 2026-11-22\n    source: here\n{lines}")
}

fn args(prices: Option<&std::path::Path>, dedicated: &str, serverless: &str, currency: Option<&str>) -> Args {
    Args {
        prices: prices.map(Into::into),
        dedicated_price: Some(dedicated.to_owned()),
        serverless_price: Some(serverless.to_owned()),
        accelerator: None,
        currency: currency.map(|code| code.parse().unwrap()),
    }
}

#[test]
fn the_built_in_prices_are_the_published_ones() {
    let prices = Prices::load(None, TODAY).unwrap();
    let per_hour = |name: &str| {
        let price = &prices.prices[name];
        (price.machine_per_hour, price.vcpu_per_hour, price.gib_per_hour, price.currency.to_string())
    };
    let machine = |amount| (Some(amount), None, None, "USD".to_owned());
    assert_eq!(per_hour("azure-nc24ads-a100-v4"), machine(3.67));
    assert_eq!(per_hour("azure-nc40ads-h100-v5"), machine(6.98));
    assert_eq!(per_hour("aws-g6.xlarge"), machine(0.805));
    assert_eq!(per_hour("aws-g5.xlarge"), machine(1.006));
    let cell = |vcpu, gib, currency: &str| (None, Some(vcpu), Some(gib), currency.to_owned());
    assert_eq!(per_hour("fargate-x86"), cell(0.04048, 0.004_445, "USD"));
    assert_eq!(per_hour("fargate-arm"), cell(0.03238, 0.00356, "USD"));
    assert_eq!(per_hour("cloud-run"), cell(0.000_018 * 3600.0, 0.000_002 * 3600.0, "USD"));
    assert_eq!(per_hour("eci"), cell(0.000_049 * 3600.0, 0.000_006_13 * 3600.0, "CNY"));
    assert_eq!(per_hour("aci"), cell(0.0405, 0.00445, "USD"));
    // With the 4 virtual CPUs and 16 GiB that Cloud Run wants beside an L4.
    let l4 = prices.of_model(Kind::Serverless, "l4").unwrap();
    assert!((l4.gpu_per_hour.unwrap() - 1.04652).abs() < 1e-9);
    // Any day of the year may be meant.
    assert_eq!((l4.age().to_string().as_str(), l4.stale, l4.age().may_be_stale()), ("0-325", false, true));
}

#[test]
fn what_can_be_no_price_is_told_with_its_line() {
    let twice = parsed(&entry("    kind: dedicated\n    gpuHour: 1\n  x: {}\n")).unwrap_err();
    assert!(twice.starts_with("p.yaml: line 8 column 3: duplicate mapping key: x; "), "{twice}");
    for (lines, told) in [
        ("    kind: dedicated\n    gpuHour: -1\n", "p.yaml:7: x: gpuHour is -1: a price may not be negative"),
        ("    kind: dedicated\n    gpuHour: .nan\n", "p.yaml:7: x: gpuHour is NaN: not a number"),
        ("    kind: dedicated\n    gpuHour: .inf\n", "p.yaml:7: x: gpuHour is inf: too much"),
        ("    kind: dedicated\n    gpuHour: 1e300\n", "too much for an hour"),
        ("    kind: dedicated\n    gpuHour: 0\n", "nothing is for free"),
        (
            "    kind: dedicated\n    gpuHour: 1\n    gpuSecond: 1\n",
            "p.yaml:8: x: gpuHour is there by the second",
        ),
        ("    kind: dedicated\n    machineHour: 1\n    gpus: 0\n", "p.yaml:8: x: gpus is 0"),
        ("    kind: dedicated\n", "it has no price"),
        ("    kind: serverless\n    gpuHour: 1\n    leastVcpus: 4\n", "have no price"),
        ("    kind: rented\n    gpuHour: 1\n", "line 6"),
        ("    kind: dedicated\n    gpuHour: cheap\n", "line 7"),
        ("    kind: dedicated\n    gpuHours: 1\n", "gpuHours"),
    ] {
        let error = parsed(&entry(lines)).unwrap_err();
        assert!(error.contains(told), "{lines}: {error}");
    }
    for (text, told) in [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("prices: [", "line"),
        ("name,kind,gpuHour\nx,dedicated,1\n", "prices --help"),
        ("prices:\n- {name: x, kind: dedicated, gpuHour: 1}\n", "line 2 column 3"),
        ("prices:\n  x: {}\n  x: {}\n", "p.yaml"),
        ("exchange:\n- {from: EUR, to: EUR, rate: 1, asOf: 2026}\n", "itself"),
        ("exchange:\n- {from: EUR, to: USD, rate: 0, asOf: 2026}\n", "p.yaml:2"),
        ("exchange:\n- {from: EURO, to: USD, rate: 1, asOf: 2026}\n", "no currency"),
        ("exchange:\n- {from: EUR, to: USD, rate: 1, asOf: 2026-13}\n", "2026-11-22"),
        ("exchange:\n- {from: EUR, to: USD, rate: 1, asOf: 2027}\n", "yet to come"),
    ] {
        let error = parsed(text).unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
    }
}

#[test]
fn a_price_of_more_than_180_days_is_said_to_be_old() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    let with = |as_of| {
        let text = entry("    kind: dedicated\n    gpuHour: 2\n").replace("2026-11-22", as_of);
        std::fs::write(&file, text).unwrap();
        args(Some(&file), "x", "6", None).rates(TODAY).unwrap().warnings
    };
    assert_eq!(with("2026-05-26"), [""; 0]);
    assert!(with("2026-05-25")[0].contains("x is of 2026-05-25, 181 days ago"));
    // Of a month or a year it is said only when all of it is past.
    assert!(with("2026-05")[0].contains("x is of 2026-05, without a day: it may be up to 205 days old"));
    assert!(with("2026-04")[0].contains("x is of 2026-04, 206-235 days ago"));
    assert_eq!(with("2026-06"), [""; 0]);
    assert!(with("2025")[0].contains("x is of 2025, 326-690 days ago"));
}

#[test]
fn currencies_are_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    let text = entry(
        "    kind: dedicated\n    gpuHour: 2\n  y:\n    kind: serverless\n    gpuHour: 14\n    currency: CNY\n    asOf: 2026-11\n    source: s\n",
    );
    std::fs::write(&file, &text).unwrap();
    let rates = |args: Args| args.rates(TODAY).map_err(|error| error.to_string());
    let error = rates(args(Some(&file), "x", "y", None)).unwrap_err();
    assert!(error.contains("y is in CNY and x in USD") && error.contains("exchange:"), "{error}");
    // A plain number beside yuan is no dollar without a word.
    assert!(rates(args(Some(&file), "3", "y", None)).unwrap_err().contains("--currency"));
    assert_eq!(rates(args(Some(&file), "3", "y", Some("CNY"))).unwrap().currency.to_string(), "CNY");
    assert!(rates(args(Some(&file), "x", "6", Some("EUR"))).unwrap_err().contains("EUR"));
    std::fs::write(
        &file,
        format!("{text}exchange:\n- {{from: CNY, to: USD, rate: 0.14, asOf: 2026-01-02}}\n"),
    )
    .unwrap();
    let converted = rates(args(Some(&file), "x", "y", None)).unwrap();
    assert!((converted.serverless_per_gpu_hour - 1.96).abs() < 1e-12);
    // That renting is cheaper, how it was converted, and once for all how old what is.
    assert_eq!(converted.warnings.len(), 3, "{:?}", converted.warnings);
    assert!(converted.warnings[0].contains("a rented GPU (1.96 USD per hour)"));
    assert!(
        converted.warnings[2]
            .contains("the exchange rate of CNY to USD, 0.14 is of 2026-01-02, 324 days ago")
    );
    let back = rates(args(Some(&file), "x", "y", Some("CNY"))).unwrap();
    assert!((back.ratio() - converted.ratio()).abs() < 1e-12);
}

#[test]
fn rented_below_owned_is_a_warning() {
    assert!(Rates::new(Currency::USD, 2.0, 2.0).unwrap().warnings[0].contains("rent everything"));
    assert_eq!(Rates::new(Currency::USD, 2.0, 2.1).unwrap().warnings, [""; 0]);
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Rates::new(Currency::USD, wrong, 1.0).is_err());
    }
}

#[test]
fn names_are_found_or_listed() {
    let error = args(None, "g6", "6", None).rates(TODAY).unwrap_err().to_string();
    assert!(error.contains("aws-g6.xlarge"), "{error}");
    // It prices virtual CPUs only.
    assert!(args(None, "2", "fargate-x86", None).rates(TODAY).is_err());
    let by_model = Args { accelerator: Some("L4".to_owned()), ..Args::default() };
    for (product, price) in [
        ("NVIDIA-A100-SXM4-80GB", Some("azure-nc24ads-a100-v4")),
        ("NVIDIA-L4", Some("aws-g6.xlarge")),
        ("NVIDIA-L40S", None),
        ("NVIDIA-A100-PCIE-40GB", None),
        ("", None),
    ] {
        let prices = Prices::load(None, TODAY).unwrap();
        assert_eq!(prices.of_model(Kind::Dedicated, product).map(|found| &*found.name), price);
    }
    let rates = by_model.rates(TODAY).unwrap();
    assert!((rates.ratio() - 1.3).abs() < 0.01);
    assert!(Args::default().rates(TODAY).unwrap_err().to_string().contains("--dedicated-price"));
}

/// The price file that `--help` shows.
#[test]
fn the_help_shows_a_price_file() {
    let mut command = <crate::args::Args as clap::CommandFactory>::command();
    let help = command.find_subcommand_mut("prices").unwrap().get_after_long_help().unwrap().to_string();
    let shown: Vec<&str> = help.lines().skip(1).take_while(|line| !line.is_empty()).collect();
    let prices = parsed(&shown.join("\n")).unwrap();
    assert_eq!(prices.prices["our-a100"].gpu_per_hour, Some(2.3));
    assert_eq!((prices.prices.len(), prices.exchange.len()), (2, 1));
}

proptest! {
    #[test]
    fn any_bytes_are_prices_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Prices::parse("p", &bytes, TODAY);
    }

    #[test]
    fn any_cell_is_a_price_or_an_error(cell in "[-0-9.einfa_~\"'&*!]{0,12}", key in "gpuHour|gpus|asOf|billedSeconds|leastGib") {
        if let Ok(prices) = parsed(&entry(&format!("    kind: serverless\n    vcpuHour: 1\n    {key}: {cell}\n"))) {
            for price in prices.prices.values() {
                prop_assert!(price.gpu_per_hour.is_none_or(|amount| amount > 0.0 && amount.is_finite()));
            }
        }
    }
}
