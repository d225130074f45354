"""Civil date from and to a count of days, for any year.

The proleptic Gregorian calendar. The months are counted from March, so that
the leap day is the last of its year and a month's first day is (153 m + 2) / 5.
"""

from __future__ import annotations

__all__ = ["date_of_day", "day_of_date", "weekday_of_day"]

_EPOCH = 719_468  # days from 0000-03-01 to 1970-01-01
_ERA = 146_097  # days in 400 years


def day_of_date(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date. ``month`` is 1 to 12; ``day`` may run past
    the month's end and counts on into the next."""
    if month <= 2:
        year -= 1
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * _ERA + day_of_era - _EPOCH


def date_of_day(days: int) -> tuple[int, int, int]:
    """Year, month (1-12) and day (1-31) of a count of days since 1970-01-01."""
    era, day_of_era = divmod(days + _EPOCH, _ERA)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    year += era * 400 + (month >= 10)
    return year, month + 3 if month < 10 else month - 9, day


def weekday_of_day(days: int) -> int:
    """Day of the week, 0 for Sunday."""
    return (days + 4) % 7
