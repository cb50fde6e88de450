"""Looking at a table with pandas."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell(
        "make-files",
        """
import numpy as np, pandas as pd
rng = np.random.default_rng(11)
rows = 4000
pd.DataFrame({
    "reading": np.arange(50_000, 50_000 + rows),
    "taken_at": pd.date_range("2024-03-01", periods=rows, freq="90min").strftime("%Y-%m-%d %H:%M:%S"),
    "station": rng.integers(1, 400, rows),
    "zone": rng.choice(["coast", "hills", "plain", "city", None], rows, p=[.3, .25, .2, .2, .05]),
    "sensor": rng.choice(["analog", "digital", "mixed"], rows),
    "serial": rng.choice([f"SN{k:05d}" for k in range(90)], rows),
    "weather": rng.choice(["clear", "clouds", "rain"], rows, p=[.2, .5, .3]),
    "gusts": rng.integers(0, 12, rows),
    "pressure": np.round(rng.normal(1013, 9, rows), 2),
    "humidity": rng.choice([.3, .5, .7, .9, np.nan], rows, p=[.2, .3, .3, .1, .1]),
    "delay": np.round(rng.exponential(4, rows), 2),
    "alarm": rng.random(rows) < .03,
    "remark": [("Sensor cleaned, wind vane stuck. " * int(k)).strip() for k in rng.integers(1, 12, rows)],
}).to_csv("readings.csv", index=False)
pd.DataFrame({"station": [f"ST{k:03d}" for k in range(1, 400)], "land": rng.choice(["NO", "IS", "JP"], 399)}).to_csv(
    "stations.csv", index=False)
open("names.csv", "wb").write("ort;h\\nTr\\u00f8ndelag;12\\nM\\u00f8re;40\\n".encode("latin-1"))
""",
        setup=True,
    ),
    Cell(
        "first-look",
        """
import pandas as pd
import numpy as np
df = pd.read_csv("readings.csv")
print("rows and columns:", df.shape)
print("columns:", df.columns.tolist())
df.head()
""",
        (r"4000, 13", r"pressure", r"50000", r"2024-03-01"),
    ),
    Cell(
        "info",
        "df.info()",
        (r"4000", r"zone\s+\d+\s+3\d\d\d non-null|zone\s+3\d\d\d non-null|zone.*[12]\d\d", "float64"),
    ),
    Cell("describe", "df.describe()", ("gusts", "mean", "pressure")),
    Cell("describe-all", 'df.describe(include="all").T', ("SN0", "sensor", "pressure", "top|freq")),
    Cell("whole-frame", "df", ("4000 rows", "50000", "53999", "pressure")),
    Cell(
        "nulls",
        """
print("nulls:")
print(df.isna().sum())
print("percent:")
print((df.isna().mean() * 100).round(2))
""",
        (r"humidity\s+[34]\d\d", r"zone\s+[12]\d\d"),
    ),
    Cell("all-rows-as-text", "print(df.drop(columns='remark').to_string())", ("reading", "50000", "53999"), slow=True),
    Cell(
        "counts-of-each",
        """
for name in df.columns.drop("remark"):
    print(f"\\n== {name} ==")
    print(df[name].value_counts())
""",
        (r"coast\s+1\d\d\d", r"clouds\s+\d+", "== humidity", r"True\s+\d+"),
    ),
    Cell(
        "grouped",
        """
by_zone = df.groupby(["zone", "weather"]).agg(
    total=("pressure", "sum"), readings=("reading", "count"), mean_gusts=("gusts", "mean"), wettest=("humidity", "max"))
by_zone
""",
        (r"city.{1,12}clear", "plain", "mean_gusts"),
    ),
    Cell("correlation", "df.corr(numeric_only=True)", ("pressure", r"\b1(\.0+)?\b")),
    Cell(
        "pivot",
        """
df["taken_at"] = pd.to_datetime(df["taken_at"])
df["month"] = df["taken_at"].dt.to_period("M")
wide = df.pivot_table(index="month", columns=["weather", "sensor"], values="pressure", aggfunc="mean")
wide
""",
        ("2024-03", "clouds", "digital", "2024-11"),
    ),
    Cell(
        "merge-of-two-types",
        """
stations = pd.read_csv("stations.csv")
joined = df.merge(stations, on="station", how="left")
joined.head()
""",
        ("trying to merge on (int64 and str|int64 and object)", "station", r"joined = df\.merge"),
    ),
    Cell(
        "no-such-column",
        'warmest = df["temperature"].max()\nprint(f"warmest: {warmest:.1f}")',
        ("KeyError: 'temperature'", r'warmest = df\["temperature"\]'),
    ),
    Cell(
        "wrong-encoding",
        'names = pd.read_csv("names.csv", sep=";")\nnames',
        ("UnicodeDecodeError", "utf-8", "read_csv"),
    ),
    Cell(
        "many-columns",
        """
signals = pd.DataFrame(np.random.default_rng(2).normal(size=(600, 64)), columns=[f"ch_{k:02d}" for k in range(64)])
signals["label"] = (signals.ch_00 > 0).astype(int)
signals.head(8)
""",
        ("ch_00", "label", "65"),
    ),
    Cell(
        "long-texts",
        'pd.set_option("display.max_colwidth", None)\ndf[["reading", "remark"]].head(20)',
        ("50000", "wind vane stuck", "50019"),
    ),
    Cell(
        "a-table-for-each",
        """
from IPython.display import display
pd.reset_option("display.max_colwidth")
for zone, part in df.groupby("zone"):
    print(f"zone {zone}: {len(part)} readings")
    display(part.describe().round(2))
""",
        (r"zone city: \d+ readings", r"zone plain: \d+ readings", "mean"),
    ),
    Cell(
        "bad-date",
        """
dates = df["taken_at"].dt.strftime("%Y-%m-%d").copy()
dates.iloc[1234] = "30.02.2024"
pd.to_datetime(dates, format="%Y-%m-%d")
""",
        (r"30\.02\.2024", "1234|doesn't match format|does not match", r"pd\.to_datetime\(dates"),
    ),
    Cell(
        "styled",
        """
busy = df.groupby("serial")["delay"].sum().nlargest(6).to_frame("waited")
busy.style.format("{:,.1f} s").background_gradient(cmap="Greens")
""",
        ("SN0", "waited", r"\d{3}"),
        needs=["jinja2"],
    ),
    Cell("one-series", 'df["pressure"]', ("float64", "4000")),
    Cell(
        "no-output",
        """
df["load"] = df["gusts"] * df["pressure"] / (1 + df["humidity"].fillna(0))
monthly = df.groupby("month")["load"].mean()
peak = monthly.idxmax()
""",
        ("monthly", "peak"),
    ),
    Cell(
        "chained-assignment",
        """
plain = df[df["zone"] == "plain"]
plain["humidity"][plain["humidity"].isna()] = 0
plain["humidity"].isna().sum()
""",
        ("ChainedAssignmentError|SettingWithCopy|never works", r"\d+"),
    ),
    Cell(
        "save",
        'df.to_csv("clean.csv", index=False)\ndf.to_pickle("clean.pkl")\npd.read_csv("clean.csv").shape',
        ("4000, 15",),
    ),
    Cell(
        "polars",
        """
import polars as pl
pl.read_csv("clean.csv").group_by("weather").agg(pl.col("load").mean(), pl.len()).sort("load", descending=True)
""",
        ("clouds", "load"),
        needs=["polars"],
    ),
    Cell(
        "everything-printed",
        "print(df.shape)\nprint(df.dtypes)\nprint(df.head())\nprint(df.describe())\nprint(df.isna().sum())",
        ("4000", "float64", "mean", r"humidity\s+[34]\d\d"),
    ),
    Cell(
        "outliers",
        """
for name in df.select_dtypes("number"):
    low, high = df[name].quantile([.25, .75])
    far = df[(df[name] < low - 1.5 * (high - low)) | (df[name] > high + 1.5 * (high - low))]
    print(f"{name}: {len(far)} outliers ({len(far) / len(df):.1%})")
""",
        (r"delay: \d+ outliers", "gusts: 0 outliers"),
    ),
]
