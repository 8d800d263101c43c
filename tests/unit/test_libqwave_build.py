"""libqwave as it is built and installed: the header for every compiler, the names that are exported, no daemon."""

import os
import re
import shutil
import stat
import subprocess
import tempfile
from enum import IntEnum
from pathlib import Path

import pytest

from qos2.win32 import enumerations, errors
from unit.native import REPOSITORY, tool

LIBRARY = REPOSITORY / "clients" / "c"
HEADER = LIBRARY / "include" / "qos2.h"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{HEADER.parent}")
#: Headers of this machine's processor family, which the other word size uses too but does not find by itself.
SHARED_HEADERS = f"/usr/include/{os.uname().machine}-linux-gnu"

COMPILERS = {
    "gcc, C11": ("gcc", "-std=c11"),
    "gcc, GNU C99": ("gcc", "-std=gnu99"),
    "gcc, C17": ("gcc", "-std=c17"),
    "g++, C++17": ("gcc", "-xc++", "-std=c++17"),
    "g++, C++20": ("gcc", "-xc++", "-std=c++20"),
    "clang, C11": ("clang", "-std=c11"),
    "clang, C++17": ("clang", "-xc++", "-std=c++17"),
    "gcc for i386, C11": ("gcc", "-m32", "-idirafter", SHARED_HEADERS, "-std=c11"),
    "clang for i386, C++17": ("clang", "-m32", "-idirafter", SHARED_HEADERS, "-xc++", "-std=c++17"),
}

EXPORTED = [
    "GetLastError",
    "GetOverlappedResult",
    "QOSAddSocketToFlow",
    "QOSCancel",
    "QOSCloseHandle",
    "QOSCreateHandle",
    "QOSEnumerateFlows",
    "QOSNotifyFlow",
    "QOSQueryFlow",
    "QOSRemoveSocketFromFlow",
    "QOSSetFlow",
    "QOSStartTrackingClient",
    "QOSStopTrackingClient",
    "SetLastError",
    "qos2_last_error_message",
]
WEAK = {"GetLastError", "GetOverlappedResult", "SetLastError"}

#: A porting layer: the same types in its own words, SOCKET as wide as on 64-bit Windows, another calling convention.
LAYER = """
#include <stdint.h>
#include <sys/socket.h>
typedef int BOOL;
typedef unsigned int ULONG, UINT32, DWORD, *PULONG, *LPDWORD;
typedef unsigned short USHORT;
typedef uint64_t UINT64;
typedef void *HANDLE, *PVOID, **PHANDLE;
typedef struct sockaddr *PSOCKADDR;
typedef uintptr_t SOCKET;
typedef struct _OVERLAPPED { uintptr_t Internal, InternalHigh; DWORD Offset, OffsetHigh; HANDLE hEvent; }
    OVERLAPPED, *LPOVERLAPPED;
#define WINAPI __attribute__((a_convention_of_its_own))
#define ERROR_NOT_FOUND 1168
#define QOS2_NO_WIN32_TYPES
#include "qos2.h"
BOOL use(HANDLE handle);
BOOL use(HANDLE handle) { return QOSRemoveSocketFromFlow(handle, (SOCKET)0, 7, 0) || ERROR_NOT_FOUND == 0; }
"""


def compiled(compiler: tuple[str, ...], text: str, *flags: str) -> str:
    """What a compiler has to say of a text, "" where it takes it. Skips where it cannot compile anything."""
    name, *options = compiler
    language = () if "-xc++" in options else ("-xc",)
    command = [tool(name), *options, *language, *STRICT, *flags, "-"]
    if {"-m32", "-xc++"} & set(options):
        trial = "#include <netinet/in.h>\nint i;\n"
        if subprocess.run([*command, "-fsyntax-only"], input=trial, text=True, capture_output=True).returncode:
            _missing(f"{' '.join(compiler)} compiles nothing: install g++, libc6-dev-i386")
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    return done.stderr if done.returncode else ""


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def make(*arguments: str) -> None:
    command = [tool("make"), "-s", "-C", str(LIBRARY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def output(*command: str) -> str:
    return subprocess.run([tool(command[0]), *command[1:]], capture_output=True, text=True, check=True).stdout


# The header


@pytest.mark.parametrize("name", COMPILERS)
def test_header_alone_suffices(name: str) -> None:
    assert compiled(COMPILERS[name], '#include "qos2.h"\n#include "qos2.h"\nHANDLE handle;\n', "-fsyntax-only") == ""


@pytest.mark.parametrize("name", COMPILERS)
def test_header_behind_a_porting_layer(name: str) -> None:
    text = f'extern "C" {{ {LAYER} }}' if "++" in name else LAYER
    # Linkage does not nest into the system's headers: let them be read before.
    text = "#include <netinet/in.h>\n#include <stdint.h>\n#include <stddef.h>\n" + text
    assert compiled(COMPILERS[name], text, "-fsyntax-only", "-Wno-attributes") == ""


@pytest.mark.parametrize("name", ["gcc, C11", "g++, C++17", "clang, C11"])
def test_types_of_another_size_are_refused(name: str) -> None:
    wide = LAYER.replace("typedef unsigned int ULONG, UINT32, DWORD", "typedef unsigned long ULONG, UINT32, DWORD")
    assert wide != LAYER
    assert "not its size on Windows" in compiled(COMPILERS[name], wide, "-fsyntax-only", "-Wno-attributes")


@pytest.mark.parametrize("name", ["g++, C++17", "gcc for i386, C11"])
def test_inline_functions_elsewhere(name: str, tmp_path: Path) -> None:
    """clients/c/tests/check_header.c, where C11 on this processor is done by its lane of the native tests."""
    text = (LIBRARY / "tests" / "check_header.c").read_text()
    program = str(tmp_path / "check")
    flags = (f"-I{LIBRARY / 'tests'}", "-D_GNU_SOURCE", "-O2", "-pthread", "-o", program)
    said = compiled(COMPILERS[name], text, *flags)
    if "-m32" in COMPILERS[name] and "cannot find" in said:
        _missing("nothing can be linked for i386: install libc6-dev-i386 and gcc-N-multilib")
    assert said == ""
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == ""


def test_numbers_are_those_of_the_python_module() -> None:
    text = HEADER.read_text()
    found = {name: int(number) for name, number in re.findall(r"#define (ERROR_\w+) (\d+)", text)}
    assert found == {name: number for number, name in errors.ERROR_NAMES.items()}
    members = {name: int(number) for name, number in re.findall(r"\t(QOS\w+) = (\d+)", text)}
    assert members == {name: each.value for name, each in vars(enumerations).items() if isinstance(each, IntEnum)}


# The library


def test_library_is_built_by_clang_too() -> None:
    make("BUILD=build/clang", "CC=clang", "all", "tests", "examples")


def test_exported_names() -> None:
    make("all")
    symbols = output("readelf", "--dyn-syms", "--wide", str(LIBRARY / "build/libqwave.so"))
    defined = {}
    imported = set()
    for line in symbols.splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].endswith(":") or fields[3] not in ("FUNC", "OBJECT", "TLS", "NOTYPE"):
            continue
        if fields[6] == "UND":
            imported.add(fields[7].partition("@")[0])
        else:
            defined[fields[7]] = fields[4]
    del defined["QWAVE_1.0"]  # the version itself
    assert defined == {f"{name}@@QWAVE_1.0": "WEAK" if name in WEAK else "GLOBAL" for name in EXPORTED}
    # It says nothing to anybody, and leaves the program's life to the program.
    speaks = {"printf", "fprintf", "puts", "putchar", "fputs", "fwrite", "perror", "stdout", "stderr", "syslog"}
    ends = {"exit", "_exit", "abort", "kill", "raise", "__assert_fail", "signal", "sigaction"}
    assert "sendmsg" in imported
    assert imported & (speaks | ends | {f"__{name}_chk" for name in speaks}) == set()


def test_what_the_library_needs() -> None:
    make("all")
    dynamic = output("readelf", "--dynamic", "--wide", str(LIBRARY / "build/libqwave.so"))
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == ["libqwave.so.1"]
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    # The dynamic linker has the thread-local variables; before glibc 2.34 threads had a library of their own.
    assert {each for each in needed if not re.match(r"ld-linux.*|libpthread\.so\.0", each)} == {"libc.so.6"}
    assert (LIBRARY / "build/libqwave.so.1").resolve() == LIBRARY / "build/libqwave.so"


def test_installed_library_serves_a_program(tmp_path: Path) -> None:
    make("install", f"BUILD={tmp_path}/build", f"DESTDIR={tmp_path}", "PREFIX=/usr", "LIBDIR=/usr/lib/somewhere")
    every = (each for each in (tmp_path / "usr").rglob("*") if not each.is_dir())
    installed = sorted(str(each.relative_to(tmp_path)) for each in every)
    assert installed == [
        "usr/include/qos2.h",
        "usr/lib/somewhere/libqwave.so",
        "usr/lib/somewhere/libqwave.so.1",
        "usr/lib/somewhere/libqwave.so.1.0.0",
        "usr/lib/somewhere/pkgconfig/libqwave.pc",
    ]
    environment = os.environ | {
        "PKG_CONFIG_PATH": str(tmp_path / "usr/lib/somewhere/pkgconfig"),
        "PKG_CONFIG_SYSROOT_DIR": str(tmp_path),
    }
    asked = [tool("pkg-config"), "--cflags", "--libs", "libqwave"]
    flags = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.split()
    program = tmp_path / "mark"
    source = LIBRARY / "examples" / "mark.c"
    subprocess.run([tool("gcc"), str(source), *flags, "-o", str(program)], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(tmp_path / "usr/lib/somewhere"),
        "QOS2_SOCKET": str(tmp_path / "nobody"),
    }
    done = subprocess.run([program, "192.0.2.7", "9"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"QOSCreateHandle: error 1068: no daemon at {tmp_path}/nobody: nothing is there"
        " (start qos2d, or name its socket in $QOS2_SOCKET)\n"
    )


# Programs around it


def run(text: str, *flags: str, folder: Path, env: dict[str, str] | None = None) -> str:
    """What a program with the library prints; it ends with 0 and has nothing to complain about."""
    make("all")
    program = folder / "program"
    library = (f"-L{LIBRARY / 'build'}", "-lqwave", f"-Wl,-rpath,{LIBRARY / 'build'}")
    assert (
        compiled(("gcc", "-std=gnu11"), text, "-O1", *flags, "-o", str(program), "-Wl,--no-as-needed", *library) == ""
    )
    done = subprocess.run([program], env=os.environ | (env or {}), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_last_error_of_the_program_is_used(tmp_path: Path) -> None:
    """A program that has GetLastError() of its own keeps it, and finds the library's errors there."""
    text = """
    #include <qos2.h>
    #include <stdio.h>
    static DWORD mine = 1;
    DWORD GetLastError(void) { return mine; }
    void SetLastError(DWORD error) { mine = error + 1000; }
    int main(void) { BOOL ok = QOSCloseHandle(NULL); printf("%d %u", ok, (unsigned)mine); return 0; }
    """
    assert run(text, folder=tmp_path) == "0 1087"


def test_library_that_is_loaded_by_name(tmp_path: Path) -> None:
    """As programs do with qwave.dll: loaded and unloaded again and again, with fork() behind it."""
    text = f"""
    #include <dlfcn.h>
    #include <qos2.h>
    #include <stdio.h>
    #include <sys/wait.h>
    #include <unistd.h>
    typedef BOOL (*create)(PQOS_VERSION, PHANDLE);
    int main(void) {{
        for (int i = 0; i < 5; i++) {{
            void *library = dlopen("{LIBRARY}/build/libqwave.so.1", RTLD_NOW);
            QOS_VERSION version = {{1, 0}};
            HANDLE handle;
            create call;
            int status = 0;
            *(void **)&call = dlsym(library, "QOSCreateHandle");
            DWORD (*error)(void);
            *(void **)&error = dlsym(library, "GetLastError");
            if (!call(&version, &handle)) printf("%u ", (unsigned)error());
            if (dlclose(library) != 0) return 1;
            if (fork() == 0) _exit(0);
            wait(&status);
            if (status != 0) return 2;
        }}
        return 0;
    }}
    """
    env = {"QOS2_SOCKET": str(tmp_path / "nobody")}
    text = text.replace("-lqwave", "")
    assert run(text, "-Wno-pedantic", folder=tmp_path, env=env) == "1068 " * 5


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "no daemon at /run/qos2/qos2.sock"),
        ("/" + "x" * 107, "the path is too long"),
        ("/" + "x" * 106, "nothing is there"),
        ("{folder}", "nobody listens"),
    ],
    ids=["empty", "too long", "as long as can be", "no socket"],
)
def test_no_daemon(path: str, expected: str, tmp_path: Path) -> None:
    if not path and Path("/run/qos2/qos2.sock").exists():
        pytest.skip("a daemon runs on this machine")
    text = """
    #include <qos2.h>
    #include <stdio.h>
    int main(void) {
        QOS_VERSION version = {1, 0}, other = {1, 5};
        HANDLE handle = NULL;
        if (QOSCreateHandle(&other, &handle) || GetLastError() != 87) return 1;
        if (QOSCreateHandle(&version, NULL) || GetLastError() != 87) return 2;
        if (QOSCreateHandle(NULL, &handle) || GetLastError() != 87) return 3;
        if (QOSCreateHandle(&version, &handle) || GetLastError() != 1068 || handle != NULL) return 4;
        printf("%s", qos2_last_error_message());
        return 0;
    }
    """
    with tempfile.NamedTemporaryFile() as file:
        said = run(text, folder=tmp_path, env={"QOS2_SOCKET": path.replace("{folder}", file.name)})
    assert expected in said


def test_programs_with_more_rights_do_not_believe_their_environment(tmp_path: Path) -> None:
    """AT_SECURE (ld.so(8)): who starts such a program must not choose the daemon that it talks to."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a program with other rights than its caller")
    make("all")
    text = '#include <stdio.h>\n#include "transport.h"\nint main(void) { printf("%s", transport_path()); return 0; }\n'
    program = tmp_path / "program"
    objects = map(str, sorted((LIBRARY / "build/src").glob("*.o")))
    source = tmp_path / "program.c"
    source.write_text(text)
    flags = ("-std=gnu11", *STRICT, f"-I{LIBRARY / 'src'}", "-pthread")
    subprocess.run([tool("gcc"), *flags, str(source), *objects, "-o", str(program)], check=True)

    def path() -> str:
        env = os.environ | {"QOS2_SOCKET": "/elsewhere"}
        return subprocess.run([program], env=env, capture_output=True, text=True, check=True).stdout

    assert path() == "/elsewhere"
    shutil.chown(program, 65534)
    program.chmod(0o755 | stat.S_ISUID)
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("the folder for temporary files is mounted nosuid")
    assert path() == "/run/qos2/qos2.sock"
