"""E2B's Python SDK, unmodified: templates. Arguments: address, token. Says "ok"."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

ADDRESS, TOKEN = sys.argv[1:]
os.environ |= {"E2B_API_KEY": TOKEN, "E2B_API_URL": ADDRESS, "E2B_SANDBOX_URL": ADDRESS}

from e2b import AsyncTemplate, BuildException, Sandbox, Template  # noqa: E402

READY = "python3 -c \"import urllib.request as u; u.urlopen('http://127.0.0.1:8000')\""


def refused(template):
    try:
        Template.build(template, "refused")
    except BuildException as error:
        return str(error)
    raise AssertionError("no BuildException")


def with_files(context):
    (context / "src").mkdir()
    (context / "src" / "main.py").write_text("print('main')")
    (context / "src" / "data.txt").write_text("1")
    return (
        Template(file_context_path=str(context))
        .from_base_image()
        .copy("src/*", "app/")
        .copy("src/main.py", "one.py", mode=0o600)
        .make_symlink("one.py", "link.py")
        .set_envs({"GREETING": "hello"})
        .set_workdir("app")
        .run_cmd("python3 main.py > said.txt")
        .set_start_cmd("python3 -m http.server 8000", READY)
    )


with tempfile.TemporaryDirectory() as context:
    lines = []
    info = Template.build(
        with_files(Path(context)), "files:v1", on_build_logs=lambda entry: lines.append(entry.message)
    )
assert info.template_id == "files", info
assert any("RUN python3 main.py" in line for line in lines), lines
assert [Template.exists(name) for name in ("files", "base", "other")] == [True, True, False]
with Sandbox.create("files") as box:
    said = box.commands.run("cat app/said.txt link.py; stat -c %a one.py; echo $GREETING; ls app").stdout
    assert said == "main\nprint('main')600\nhello\ndata.txt\nmain.py\nsaid.txt\n", said
    assert "said.txt" in box.commands.run(f'{READY[:-1]}.read()" && curl -s 127.0.0.1:8000').stdout
    assert [each.args[-1] for each in box.commands.list()] == ["python3 -m http.server 8000"]

Template.build(Template().from_python_image("3").pip_install("roman"), "packages")
with Sandbox.create("packages") as box:
    assert box.commands.run("python -c 'import roman; print(roman.toRoman(9))'").stdout == "IX\n"
asyncio.run(AsyncTemplate.build(AsyncTemplate().from_template("packages").run_cmd("python -c 'import roman'"), "more"))

assert "from_base_image" in refused(Template().from_image("ubuntu:22.04"))
assert "exit status 3: no" in refused(Template().from_base_image().run_cmd("echo no; exit 3"))
assert "/home/user" in refused(Template().from_base_image().set_workdir("/app"))
assert "can't be installed" in refused(Template().from_base_image().pip_install("no-such-package-of-anybody"))
assert not Template.exists("refused")
print("ok")
