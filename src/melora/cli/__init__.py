"""The bodies of the commands, one file each; the parser is melora_cli, which imports none of this before it must."""
