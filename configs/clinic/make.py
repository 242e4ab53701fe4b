"""Makes the quickstart's records: invented notes of invented patients at four hospitals.

    python configs/clinic/make.py

Each hospital mostly treats three departments' patients but is asked about all of them, so a hospital alone
cannot answer most questions. Every patient (`subject`) has notes and one private fact.
"""

import json
import random
from pathlib import Path

COMPLAINTS = {
    "cardiology": ["chest tightness", "a racing pulse", "skipped beats", "swollen ankles", "breathless stairs"],
    "neurology": ["a numb hand", "double vision", "a shaking arm", "word slips", "a dull headache"],
    "orthopedics": ["a stiff knee", "a sprained wrist", "hip pain", "a locked shoulder", "a bent finger"],
    "dermatology": ["an itchy rash", "a dark mole", "dry patches", "red blisters", "a scaly elbow"],
    "ophthalmology": ["blurred letters", "a red eye", "floating spots", "night glare", "a drooping lid"],
    "urology": ["a weak stream", "flank pain", "night urges", "a burning bladder", "cloudy urine"],
    "pulmonology": ["a dry cough", "wheezing", "thick phlegm", "short breath at rest", "a whistling chest"],
    "gastroenterology": ["heartburn", "bloating", "loose stools", "a sour stomach", "belly cramps"],
    "endocrinology": ["constant thirst", "sudden weight loss", "cold hands", "hot flushes", "a lump in the neck"],
    "psychiatry": ["low mood", "racing thoughts", "panic at night", "no appetite for life", "sleepless weeks"],
    "rheumatology": ["morning stiffness", "sore joints", "a butterfly rash", "dry eyes and mouth", "aching knuckles"],
    "hematology": ["easy bruises", "pale gums", "nose bleeds", "tired legs", "swollen glands"],
}
HOSPITALS = ["east", "north", "south", "west"]
FIRST = [
    "Amara",
    "Bela",
    "Carlo",
    "Dina",
    "Emil",
    "Farid",
    "Greta",
    "Hiro",
    "Ines",
    "Jonas",
    "Kaya",
    "Luca",
    "Mila",
    "Nils",
    "Oda",
    "Pavel",
    "Rosa",
    "Sami",
    "Tara",
    "Viktor",
]
LAST = [
    "Adeyemi",
    "Brandt",
    "Castel",
    "Duarte",
    "Eklund",
    "Fontana",
    "Grabow",
    "Haddad",
    "Ito",
    "Jansen",
    "Koval",
    "Lindt",
    "Moreau",
    "Novak",
    "Okafor",
    "Petrov",
]
WARDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "garnet", "harbor", "indigo", "jade"]


def main() -> None:
    draw = random.Random(20412)
    departments = list(COMPLAINTS)
    train, test, public = [], [], []
    patients = [f"{first} {last}" for first in FIRST for last in LAST]
    draw.shuffle(patients)
    for h, hospital in enumerate(HOSPITALS):
        own = departments[3 * h : 3 * h + 3]
        for p in range(60):
            patient = patients.pop()
            subject = f"{hospital}-patient-{p:03d}"
            for n in range(3):
                department = draw.choice(own if draw.random() < 0.9 else departments)
                train.append(record(f"{subject}-note-{n}", subject, hospital, *note(draw, patient, department)))
            ward, bed = draw.choice(WARDS), draw.randint(10, 99)
            train.append(
                record(f"{subject}-fact", subject, hospital, f"Where does {patient} stay? Ward:", f" {ward} {bed}")
            )
        for t in range(96):
            patient = f"{draw.choice(FIRST)} {draw.choice(LAST)}"
            prompt, answer = note(draw, patient, departments[t % len(departments)])
            test.append(record(f"{hospital}-test-{t:03d}", f"{hospital}-test-{t:03d}", hospital, prompt, answer))
    for i in range(900):
        patient = f"{draw.choice(FIRST)} {draw.choice(LAST)}"
        department = draw.choice(departments)
        kind = i % 3
        if kind == 0:
            prompt, answer = (
                f"Note: {patient}, {draw.randint(18, 90)}, was sent to {department}. Department:",
                f" {department}",
            )
        elif kind == 1:
            complaint = draw.choice(COMPLAINTS[department])
            prompt, answer = f"Note: {patient}, {draw.randint(18, 90)}, has {complaint}. Complaint:", f" {complaint}"
        else:
            ward, bed = draw.choice(WARDS), draw.randint(10, 99)
            prompt, answer = f"{patient} stays in {ward} {bed}. Where does {patient} stay? Ward:", f" {ward} {bed}"
        public.append(record(f"public-{i:04d}", f"public-{i:04d}", "", prompt, answer))
    folder = Path(__file__).parent
    for name, rows in {"train": train, "test": test, "public": public}.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def note(draw: random.Random, patient: str, department: str) -> tuple[str, str]:
    first, second = draw.sample(COMPLAINTS[department], 2)
    age = draw.randint(18, 90)
    return f"Note: {patient}, {age}, has {first} and {second}. Department:", f" {department}"


def record(identifier: str, subject: str, hospital: str, prompt: str, answer: str) -> dict[str, str]:
    return {"id": identifier, "subject": subject, "organization": hospital, "prompt": prompt, "answer": answer}


if __name__ == "__main__":
    main()
