"""Pictures and other rich output."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell(
        "two-lines",
        """
import numpy as np, pandas as pd, matplotlib.pyplot as plt
t = np.linspace(0, 6, 150)
plt.figure(figsize=(9, 5))
plt.plot(t, np.exp(-t), label="decay"); plt.plot(t, 1 - np.exp(-t), label="growth")
plt.title("Charge"); plt.legend(); plt.show()
""",
        ("decay",),
        pictures=1,
    ),
    Cell(
        "four-axes",
        """
rng = np.random.default_rng(4)
noise = pd.DataFrame(rng.normal(size=(150, 4)), columns=list("pqrs"))
fig, axes = plt.subplots(2, 2, figsize=(12, 9))
axes[0, 0].hist(noise["p"]); axes[0, 1].boxplot([noise["p"], noise["q"]])
axes[1, 0].imshow(noise.corr()); axes[1, 1].scatter(noise["p"], noise["q"])
plt.tight_layout(); plt.show()
""",
        (),
        pictures=1,
    ),
    Cell(
        "seaborn",
        "import seaborn as sns\nsns.heatmap(noise.corr(), annot=True); plt.show()",
        (),
        pictures=1,
        needs=["seaborn"],
    ),
    Cell(
        "ten-figures",
        """
for k in range(10):
    plt.figure(figsize=(4, 3)); plt.plot(rng.normal(size=40).cumsum()); plt.title(f"Walk {k}")
    plt.show()
""",
        ("Walk 0",),
        pictures=10,
        slow=True,
    ),
    Cell("histogram-with-its-value", "plt.hist(rng.normal(size=800), bins=15)", ("bars|bins|array",), pictures=1),
    Cell("plot-of-a-frame", "noise.cumsum().plot(subplots=True, figsize=(7, 7))", (), pictures=1, slow=True),
    Cell(
        "plotly",
        """
import plotly.express as px
px.scatter(px.data.iris(), x="sepal_width", y="sepal_length", color="species", title="Iris by species").show()
""",
        ("Iris by species", "species|setosa"),
        needs=["plotly", "nbformat"],
    ),
    Cell(
        "plotly-as-the-value",
        'px.line(px.data.stocks(), x="date", y=["AMZN", "MSFT"], title="Two shares")',
        ("Two shares", "AMZN"),
        needs=["plotly", "nbformat"],
    ),
    Cell(
        "altair",
        """
import altair as alt
alt.Chart(noise.reset_index()).mark_point().encode(x="p", y="q", color="r").properties(title="Points of noise")
""",
        (r"Points of noise|alt\.Chart",),
        needs=["altair"],
    ),
    Cell(
        "picture-of-pillow",
        """
from PIL import Image, ImageDraw
board = Image.new("RGB", (320, 320), "white")
ImageDraw.Draw(board).rectangle((40, 40, 200, 240), fill="navy")
board
""",
        (),
        pictures=1,
        needs=["PIL"],
    ),
    Cell(
        "formula",
        """
import sympy as sp
u, c = sp.symbols("u c")
sp.init_printing()
sp.integrate(sp.exp(-u**2) * sp.cos(c * u), (u, -sp.oo, sp.oo))
""",
        (r"sqrt|√", r"exp|e\^|-c|c"),
        needs=["sympy"],
        slow=True,
    ),
    Cell(
        "markdown",
        """
from IPython.display import HTML, Markdown, display
display(Markdown("## Result\\n* Waste fell by **8.7%**\\n* Cost rose to 41 EUR"))
""",
        (r"8\.7%", "41 EUR"),
    ),
    Cell(
        "html",
        """
body = "".join(f"<tr><td>Port {k}</td><td>{k * 7}</td></tr>" for k in range(12))
HTML(f"<style>td {{color: red}}</style><h3>Ports</h3><table>{body}</table><script>alert(1)</script>")
""",
        ("Port 11", r"\b77\b", "Ports"),
    ),
    Cell(
        "widget",
        """
import ipywidgets
ipywidgets.VBox([ipywidgets.IntSlider(value=4, description="n"), ipywidgets.Text("name")])
""",
        ("IntSlider|VBox|widget", "4|n"),
        needs=["ipywidgets"],
    ),
    Cell(
        "estimator",
        """
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.linear_model import Ridge
make_pipeline(MinMaxScaler(), Ridge(alpha=.25)).fit(noise[["p", "q"]], noise["r"])
""",
        ("MinMaxScaler", r"alpha=0?\.25"),
        needs=["sklearn"],
    ),
    Cell(
        "sound",
        "from IPython.display import Audio\nAudio(np.sin(np.linspace(0, 2000, 8000)), rate=8000)",
        ("[Aa]udio",),
    ),
    Cell(
        "saved-figure",
        """
fig, ax = plt.subplots()
ax.plot([3, 1, 2])
plt.savefig("curve.png"); plt.close(fig)
print("the curve is saved")
""",
        ("the curve is saved",),
    ),
    Cell(
        "svg-and-math",
        """
from IPython.display import SVG, Math
display(Math(r"\\hat{\\theta} = A^{-1} b"))
SVG('<svg xmlns="http://www.w3.org/2000/svg" width="50" height="50">'
    + "".join(f'<rect x="{k}" y="{k}" width="1" height="1"/>' for k in range(50))
    + '<text x="2" y="9">Valve</text></svg>')
""",
        ("theta", "SVG|svg|Valve"),
    ),
    Cell(
        "regression-table",
        'import statsmodels.api as sm\nsm.OLS(noise["p"], sm.add_constant(noise[["q", "r"]])).fit().summary()',
        ("R-squared", "const", r"Prob|P>"),
        needs=["statsmodels"],
        slow=True,
    ),
]
