"""Configurations of LXC's containers (lxc.container.conf(5)), read and told in terms of config.json.

`text.py` reads the files, `translation.py` decides line by line, `keys.py` knows what each key becomes.
`xuni lxc-config` shows it.
"""
