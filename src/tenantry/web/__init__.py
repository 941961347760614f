"""What all HTTP faces share: the table of verdicts, problem details, paging."""
