"""`pip install 'greenpg[demo]'`: `greenpg demo` serves /fortunes, and leaves nothing when it's told to stop."""

import html
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

GREENPG = Path(sys.executable).with_name("greenpg")

output = Path("output")
with output.open("w") as file:
    demo = subprocess.Popen([GREENPG, "demo", "--port", "0"], stdout=file, stderr=subprocess.STDOUT)
try:
    until = time.monotonic() + 60
    while not (address := re.search(r"listens on (http://\S+)", output.read_text())):
        assert demo.poll() is None and time.monotonic() < until, output.read_text()
        time.sleep(0.05)
    with urllib.request.urlopen(f"{address[1]}fortunes", timeout=60) as response:
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        page = response.read().decode()
    messages = [html.unescape(message) for message in re.findall(r"<tr><td>\d+</td><td>([^<]*)</td></tr>", page)]
    assert len(messages) == 13 and messages == sorted(messages), page
    assert "Additional fortune added at request time." in messages
    assert messages[0].startswith("<script>alert(") and "<script" not in page
finally:
    demo.terminate()
    try:
        status = demo.wait(30)
    finally:
        demo.kill()
assert status == 0, output.read_text()
assert not re.search("Traceback|Exception|Error", output.read_text()), output.read_text()
assert not Path(re.search(r"host=(\S+)/socket", output.read_text())[1]).exists()
