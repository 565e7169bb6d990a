"""Filter for the command of vmalert."""

from __future__ import annotations


def vmalert_argv(settings: dict, asked: dict, kept: dict) -> list[str]:
    """Return the command of a vmalert that queries the store ``asked`` and keeps its state in the store ``kept``.

    A store is ``{url, user, password_file}``. ``settings`` has the program, rules, listen (address and port), interval,
    delay, notifiers, labels and external_url.
    """
    argv = [settings["program"], f"-rule={settings['rules']}", f"-httpListenAddr={settings['listen']}", "-enableTCP6"]
    argv += [f"-evaluationInterval={settings['interval']}", f"-rule.evalDelay={settings['delay']}"]
    for flag, store in (("datasource", asked), ("remoteWrite", kept), ("remoteRead", kept)):
        argv.append(f"-{flag}.url={store['url']}")
        if store["user"]:
            argv += [f"-{flag}.basicAuth.username={store['user']}"]
            argv += [f"-{flag}.basicAuth.passwordFile={store['password_file']}"]
    argv += [f"-notifier.url={url}" for url in settings["notifiers"]]
    argv += [f"-external.label={name}={value}" for name, value in sorted(settings["labels"].items())]
    return argv + ([f"-external.url={settings['external_url']}"] if settings["external_url"] else [])


class FilterModule:
    def filters(self):
        return {"vmalert_argv": vmalert_argv}
