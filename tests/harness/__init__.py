"""What tests on the lab's real servers share."""
