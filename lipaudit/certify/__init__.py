"""From regions and a domain to certified bounds with their derivation."""
