"""The channels: how one optimizer step turns a batch into loss terms."""
