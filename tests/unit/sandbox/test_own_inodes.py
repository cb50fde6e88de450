"""The directories of which overlays are mounted."""

from __future__ import annotations

from kernelsvc.sandbox.own_inodes import MAX_OVERLAYS, overlay_dirs, with_neutral_paths

MOUNTS = ["/", "/proc", "/usr/share/fonts", "/opt/a:b", "/opt"]


def test_a_path_above_a_mount_is_left_out() -> None:
    """An overlay would not show what is mounted there."""
    assert overlay_dirs(["/usr/share", "/usr/bin"], MOUNTS, locked=False) == {"/usr/bin": "/"}
    assert overlay_dirs(["/usr/share/fonts"], MOUNTS, locked=True) == {"/usr/share/fonts": "/usr/share/fonts"}


def test_in_a_user_namespace_no_directory_holds_a_mount() -> None:
    assert overlay_dirs(["/usr/share/doc", "/usr/lib/a/b"], MOUNTS, locked=True) == {
        "/usr/share/doc": "/usr/share/doc",
        "/usr/lib/a/b": "/usr/lib",
    }


def test_an_environment_in_opt_has_an_overlay_of_its_own() -> None:
    """The fork server binds each entry of /opt again, so its namespace refuses an ordinary user an overlay of /opt."""
    mounts = with_neutral_paths(["/", "/proc"], ["kernelsvc", "other"])
    assert overlay_dirs(["/opt/kernelsvc", "/opt/other/env"], mounts, locked=True) == {
        "/opt/kernelsvc": "/opt/kernelsvc",
        "/opt/other/env": "/opt/other",
    }


def test_a_file_beside_a_mount_has_no_overlay() -> None:
    """A container engine mounts /etc/hosts, so /etc has none, and Linux refuses one of a file."""
    paths, mounts = ["/etc/inputrc", "/etc/ssl/openssl.cnf", "/usr/lib/os-release"], ["/", "/etc/hosts"]
    assert overlay_dirs(paths, mounts, locked=True, files=paths) == {
        "/etc/ssl/openssl.cnf": "/etc/ssl",
        "/usr/lib/os-release": "/usr",
    }


def test_a_path_that_the_options_of_a_mount_cannot_hold_is_left_out() -> None:
    assert overlay_dirs(["/opt/a:b/env", "/opt/a,b", '/opt/"', "/opt/a\\b"], MOUNTS, locked=False) == {}


def test_overlays_are_few_and_show_the_most_paths() -> None:
    mounts = ["/", *(f"/m{number}" for number in range(20))]
    paths = [f"/m{number}/env" for number in range(20)] + ["/usr/bin", "/usr/lib"]
    chosen = overlay_dirs(paths, mounts, locked=False)
    assert len(set(chosen.values())) == MAX_OVERLAYS
    assert chosen["/usr/bin"] == chosen["/usr/lib"] == "/"
