"""The npm package: strict types, what it holds, that it works once installed, its pages, and the AI SDK's tools."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from markdown_blocks import blocks
from served import Served

from clients import suite
from typescript.conftest import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

#: All of the client's code, compressed, for those who put it into a page.
MAX_BYTES = 25_000
PROGRAM = """
import { Client, NotFound } from "kernelsvc";
import { localServer } from "kernelsvc/node";
import { kernelsvcTools } from "kernelsvc/ai";
await using client = new Client();
await using session = await client.createSession();
console.log((await session.run("6 * 7")).text.trim(), Object.keys(kernelsvcTools({ client })).length > 10);
try { await client.session("s_0"); } catch (error) { console.log(error instanceof NotFound, error.code); }
console.log(typeof localServer);
"""


def test_types_are_strict_and_wrong_programs_are_refused(run: Run) -> None:
    run("tsc", "--noEmit")


def test_the_types_in_the_consoles_comments_are_right(run: Run) -> None:
    main = suite.ROOT / "kernelsvc" / "server" / "console" / "static" / "main.js"
    options = ["--allowJs", "--checkJs", "--noEmit", "--strict", "--ignoreConfig", "--skipLibCheck"]
    run("tsc", *options, "--module", "nodenext", "--target", "es2023", "--lib", "es2023,esnext,dom,dom.iterable", main)


@pytest.fixture(scope="module")
def packed(built: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as npm packs it, unpacked in an empty project."""
    project = tmp_path_factory.mktemp("project")
    (found,) = json.loads(run("npm", "pack", "--json", "--ignore-scripts", "--pack-destination", project))
    with tarfile.open(project / found["filename"]) as archive:
        archive.extractall(project, filter="data")
    modules = project / "node_modules"
    modules.mkdir()
    shutil.move(project / "package", modules / "kernelsvc")
    for each in (built / "node_modules").iterdir():
        (modules / each.name).symlink_to(each)
    return project


def test_the_package_holds_what_programs_need_and_nothing_else(packed: Path) -> None:
    place = packed / "node_modules" / "kernelsvc"
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    sources = {str(path.relative_to(suite.TYPESCRIPT)) for path in (suite.TYPESCRIPT / "src").rglob("*.ts")}
    compiled = {source.replace("src/", "dist/", 1).removesuffix(".ts") for source in sources}
    assert files == {
        *("README.md", "package.json"),
        *sources,
        *(f"{each}.js" for each in compiled),
        *(f"{each}.d.ts" for each in compiled),
    }
    code = b"".join(path.read_bytes() for path in (place / "dist").glob("*.js"))
    assert len(gzip.compress(code)) < MAX_BYTES
    declarations = "".join(path.read_text() for path in (place / "dist").rglob("*.d.ts"))
    assert str(packed) not in declarations


def test_a_program_that_has_installed_it_gets_its_types(packed: Path, run: Run) -> None:
    program = packed / "program.ts"
    wrong = "  // @ts-expect-error the name of a session is a text\n  await new Client().createSession({ name: 5 });"
    imports = 'import { Client } from "kernelsvc";\nimport { kernelsvcTools } from "kernelsvc/ai";'
    program.write_text(
        f"{imports}\nexport async function main() {{\n{wrong}\n"
        "  const cell = await (await new Client().createSession()).run('1');\n"
        "  return [cell.text satisfies string, kernelsvcTools({ client: new Client() }).run_code?.description];\n}\n"
    )
    (packed / "package.json").write_text('{"type": "module"}')
    # --skipLibCheck: the declarations of the AI SDK name a package that it does not install.
    options = ["--ignoreConfig", "--strict", "--noEmit", "--skipLibCheck", "--types", "node"]
    run("tsc", *options, "--module", "nodenext", "--target", "es2023", "--lib", "es2023,esnext,dom", program)


def test_it_works_once_installed(packed: Path, run: Run, served: Served) -> None:
    program = packed / "program.mjs"
    program.write_text(PROGRAM)
    # Without TypeScript: what is installed is JavaScript.
    out = run("node", "--no-strip-types", program, KERNELSVC_URL=served.url, KERNELSVC_TOKEN=served.token)
    assert out.split() == ["42", "true", "true", "not_found", "function"]


@pytest.mark.parametrize("page", ["docs/howto/typescript.md"])
def test_the_programs_of_a_page_have_right_types_and_run(built: Path, run: Run, served: Served, page: str) -> None:
    found = [block for block in blocks(suite.ROOT / page) if block.language == "typescript"]
    assert found
    names = []
    for number, block in enumerate(found):
        names.append(built / "test" / f"page{number}.ts")
        names[-1].write_text(block.text)
    run("tsc", "--noEmit")
    for name in names:
        run("node", name, KERNELSVC_URL=served.url, KERNELSVC_TOKEN=served.token)


@pytest.mark.parametrize("program", ["ai", "trace"])
def test_the_ai_sdk_with_our_tools_and_a_scripted_model(run: Run, served: Served, program: str) -> None:
    assert run("node", f"test/{program}.ts", served.url, served.token).strip().endswith("ok")
