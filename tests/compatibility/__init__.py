"""Every method of OpenAI's clients in the resources that this server offers, called; docs/compatibility.md tells."""
