"""What a run of site.yml without changes looks at, as a deploy of pyinfra: the same machine, found to be right."""

from pyinfra import host
from pyinfra.api import FactBase, OperationError
from pyinfra.facts.files import Sha256File
from pyinfra.operations import apt, files, server, systemd


class Answer(FactBase):
    """The HTTP status of an address, asked for on the machine by Python: it has no curl."""

    def command(self, url: str) -> str:
        script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).status)"
        return f"python3 -c '{script}' '{url}'"

    def process(self, output):
        return int(output[0])


state = host.data.state

apt.packages(name="Packages", packages=state["packages"])
for user in state["users"]:
    about = {"home": user["home"], "shell": user["shell"], "ensure_home": False}
    server.user(name=f"User {user['name']}", user=user["name"], **about)
for each in state["directories"]:
    owner = {"user": each["owner"], "group": each["group"], "mode": each["mode"]}
    files.directory(name=f"Directory {each['path']}", path=each["path"], **owner)
for each in state["files"]:
    owner = {"user": each["owner"], "group": each["group"], "mode": each["mode"]}
    files.put(name=f"File {each['path']}", src=each["source"], dest=each["path"], **owner)
for each in state["links"]:
    files.link(name=f"Link {each['path']}", path=each["path"], target=each["target"])
for each in state["programs"]:
    if host.get_fact(Sha256File, path=each["path"]) != each["sha256"]:
        raise OperationError(f"{each['path']} is another program")
for unit in state["units"]:
    systemd.service(name=f"Unit {unit}", service=unit, running=True, enabled=True)
for url in state["probes"]:
    if host.get_fact(Answer, url=url) != 200:
        raise OperationError(f"{url} does not answer 200")
